"""`load_table` on generated and real files: the right rows, and one clear error for each broken file."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from balora.data import load_table, sources
from balora.errors import BALoraError

COLA_COLUMNS = ["source", "label", "mark", "sentence"]

REAL_ROWS = {
    "glue/CoLA/train.tsv": 8551,
    "glue/CoLA/dev.tsv": 1043,
    "glue/SST-2/train.tsv": 67349,
    "glue/SST-2/dev.tsv": 872,
    "glue/MRPC/train.tsv": 3667,
    "glue/MRPC/dev.tsv": 408,
    "glue/RTE/train.tsv": 2490,
    "glue/RTE/dev.tsv": 277,
    "glue/STS-B/train.tsv": 5749,
    "glue/STS-B/dev.tsv": 1500,
    "glue/QNLI/dev.tsv": 5463,
    "glue_9k/MNLI/train.json": 8999,
    "glue_9k/MNLI/dev.json": 1000,
    "glue_9k/QNLI/train.json": 8999,
    "glue_9k/QNLI/dev.json": 1000,
    "glue_9k/QQP/train.json": 8999,
    "glue_9k/QQP/dev.json": 1000,
    "gsm8k/train.jsonl": 7473,
    "gsm8k/test.jsonl": 1319,
    "humaneval/HumanEval.jsonl.gz": 164,
    "mbpp/mbpp.jsonl": 974,
    "math_instruct/math_data.json": 3260,
    "tinystories/tinystories_1000.json": 1000,
    "hotpotqa/dev_distractor_500.jsonl": 500,
    "crows_pairs/crows_pairs_anonymized.csv": 1508,
    "hatecheck/test_suite_cases.csv": 3728,
    "winogender/all_sentences.tsv": 720,
}


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("name", REAL_ROWS)
def test_real_files_have_their_known_number_of_rows(data_dir, name):
    table = load_table(str(data_dir / name), column_names=COLA_COLUMNS if "CoLA" in name else None)
    assert len(table) == REAL_ROWS[name]


def test_glue_quotes_and_byte_order_mark(data_dir):
    mrpc = load_table(str(data_dir / "glue/MRPC/dev.tsv"))
    assert mrpc.column_names == ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    assert mrpc[0]["#2 String"] == '" The foodservice pie business does not fit our long-term growth strategy .'
    cola = load_table(str(data_dir / "glue/CoLA/dev.tsv"), column_names=COLA_COLUMNS)
    assert cola[0]["sentence"] == "The sailors rode the breeze clear of the rocks."


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", '\ufeff{"a": 1}\r\n\n{"a": 2, "b": "é"}\n', [{"a": 1, "b": None}, {"a": 2, "b": "é"}]),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0), [{"a": 1}]),
        ("a.jsonl", '{"a": "x\u2028y"}', [{"a": "x\u2028y"}]),
        ("a.jsonl", '{"a": 1}\n{"a": "x"}', [{"a": 1}, {"a": "x"}]),
        ("a.json", '[{"a": 1}, {"b": 2}]', [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        ("a.json", '["x", "y"]', [{"text": "x"}, {"text": "y"}]),
        ("a.json", '{"7": {"a": 1}, "9": {"a": 2}}', [{"a": 1}, {"a": 2}]),
        ("a.json", '{"version": "1", "data": [{"a": 1}]}', [{"a": 1}]),
        ("a.TSV", '\ufeffa\tb\r\n"x\ty"\r\n\t\n', [{"a": '"x', "b": 'y"'}, {"a": "", "b": ""}]),
        ("a.csv", 'a,b\n"1,\n""2""",NA\n', [{"a": '1,\n"2"', "b": "NA"}]),
        ("a.csv", '\ufeffa;b\r\n"1;";2,5\r\n', [{"a": "1;", "b": "2,5"}]),
        ("a.csv", "a\tb\n1,5\t2\n", [{"a": "1,5", "b": "2"}]),
        ("a.csv", "a|b\n1|2;3\n", [{"a": "1", "b": "2;3"}]),
        ("a.csv", "sep=;\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
        ("a.csv", "a,b;c\n1,2;3\n", [{"a": "1", "b;c": "2;3"}]),
        ("a.csv", '"a;b"\n1;2\n', [{"a;b": "1;2"}]),
        ("a.csv", "a\n1; 2\n", [{"a": "1; 2"}]),
        ("a.csv", "a\n" + "x" * 200_000, [{"a": "x" * 200_000}]),
        ("a.txt", "x\r\n \n\ny z ", [{"text": "x"}, {"text": "y z "}]),
    ],
)
def test_rows_of_each_form(tmp_path, name, content, rows):
    assert load_table(written(tmp_path, name, content)).to_list() == rows


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_column_names_replace_a_missing_header(tmp_path, name):
    path = written(tmp_path, name, "1,2\n".replace(",", "\t" if name == "a.tsv" else ","))
    assert load_table(path, column_names=["a", "b"]).to_list() == [{"a": "1", "b": "2"}]


def test_parquet_keeps_its_types(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    table = load_table(str(tmp_path / "a.parquet"))
    assert table.features == features
    assert table["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl, line 2: expected a JSON object, found a list"),
        ("a.jsonl", '{"a": 1}\n{"a": "\\ud800"}\n', "a.jsonl, row 2: holds a value no table can hold"),
        ("a.jsonl", f'{{"a": 1}}\n{{"a": 1}}\n{{"a": {2**80}}}\n{{"a": 1}}', "a.jsonl, row 3: holds a value"),
        ("a.jsonl", f'{{"a": {2**63}}}\n{{"a": 1.5}}', "a.jsonl, row 1: holds a value"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", "{}\n{}", "a.jsonl: no rows"),
        ("a.json", "[" * 100_000, "a.json: not JSON"),
        ("a.json", '[{"a": ' + "[" * 300 + "]" * 300 + "}]", "a.json, row 1: holds a value"),
        ("a.json", '[{"a": 1}, "x"]', "a.json, row 2: expected an object, found a string"),
        ("a.json", '["x", null]', "a.json, row 2: expected a string like row 1, found null"),
        ("a.json", '{"a": 1}', "a.json, row 1: expected an object, found a number"),
        ("a.json", "true", "a.json: expected a list of rows, found a truth value"),
        ("a.json", "", "a.json: not JSON"),
        ("a.json", "[]", "a.json: no rows"),
        ("a.jsonl", "", "a.jsonl: no rows"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], "a.jsonl.gz: cannot be read"),
        ("a.tsv", "a\tb\n1\t2\n3\n", "a.tsv, line 3: 1 fields, but there are 2 columns"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "a.tsv, line 2: 3 fields, but there are 2 columns"),
        ("a.tsv", "a\ta\n1\t2\n", "a.tsv: the column name 'a' occurs more than once"),
        ("a.tsv", "a\tb\0\n1\t2\n", "a.tsv: the column name 'b\\x00' holds a NUL character"),
        ("a.tsv", "a\tb\n", "a.tsv: no rows"),
        ("a.json", '[{"a\\u0000": 1}]', "a.json, row 1: holds a value no table can hold"),
        ("a.csv", 'a,b\n1,"2\n3,4\n', "a.csv, line 3: not CSV: unexpected end of data"),
        ("a.csv", "a,b\n1\n", "a.csv, line 2: 1 fields"),
        ("a.csv", "a;b\n1;2;3\n", "a.csv, line 2: 3 fields, but there are 2 columns"),
        ("a.csv", "sep=;\na;b\n1\n", "a.csv, line 3: 1 fields"),
        ("a.csv", "", "a.csv: no rows"),
        ("a.txt", "\n \n", "a.txt: no rows"),
        ("a.txt", b"\xef\xbb\xbfab\xff", "a.txt: not UTF-8 at byte offset 5"),
        ("a.tsv", "a\tb\n".encode("utf-16"), "a.tsv: not UTF-8 at byte offset 0"),
        ("a.parquet", b"PAR1PAR1", "a.parquet: not a readable parquet file"),
        ("a.xlsx", "x", "a.xlsx: unknown file format; the name must end in one of .jsonl"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, name, content, message):
    with pytest.raises(BALoraError) as raised:
        load_table(written(tmp_path, name, content))
    assert str(raised.value).startswith(f"{tmp_path}/{message}")


def test_parquet_without_rows(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(BALoraError, match="no rows"):
        load_table(str(tmp_path / "a.parquet"))


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    written(tmp_path, "train.jsonl", '{"a": 1}')
    with pytest.raises(BALoraError, match=r"trian\.jsonl: no such file; did you mean .*/train\.jsonl\?"):
        load_table(str(tmp_path / "trian.jsonl"))
    with pytest.raises(BALoraError, match=r"no such file, nor is there a folder .*nowhere"):
        load_table(str(tmp_path / "nowhere" / "train.jsonl"))
    with pytest.raises(BALoraError, match=r"is a folder; name a file in it"):
        load_table(str(tmp_path))
    for source in ("x\0y", "x" * 5000 + "/y/z", ""):
        with pytest.raises(BALoraError):
            load_table(source)


def test_settings_of_the_other_kind_of_source_raise(tmp_path):
    path = written(tmp_path, "a.json", '["x"]')
    with pytest.raises(BALoraError, match="`split` and `name` choose within a Hub dataset"):
        load_table(path, split="train")
    with pytest.raises(BALoraError, match=r"`column_names` is for \.csv and \.tsv"):
        load_table(path, column_names=["a"])
    with pytest.raises(BALoraError, match=r"`column_names` is for \.csv and \.tsv"):
        load_table("owner/data", column_names=["a"])


@pytest.mark.skipif(not datasets.config.HF_HUB_OFFLINE, reason="asks the Hub unless HF_HUB_OFFLINE is set")
def test_an_unreachable_hub_dataset_raises():
    with pytest.raises(BALoraError, match=r"^no/such-dataset: neither a local file nor a Hub .*HF_HUB_OFFLINE is set"):
        load_table("no/such-dataset", split="train")


def test_hub_splits(monkeypatch):
    one, two = Dataset.from_dict({"a": [1]}), Dataset.from_dict({"a": [1, 2]})
    asked = []

    def load_dataset(path, name=None, split=None):
        asked.append((path, name, split))
        if split is not None:
            return two
        return DatasetDict(train=one) if name == "single" else DatasetDict(train=one, test=two)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    assert len(load_table("owner/data", name="config", split="test")) == 2
    assert len(load_table("owner/data", name="single")) == 1
    assert asked == [("owner/data", "config", "test"), ("owner/data", "single", None)]
    with pytest.raises(BALoraError, match="has the splits train, test; choose one with `split`"):
        load_table("owner/data")


def test_jsonl_values_of_a_rare_type_are_kept(tmp_path):
    rows = [{"id": 1, "facts": [["title", 3]]}, {"id": "b", "facts": []}]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert load_table(path).to_list() == rows
