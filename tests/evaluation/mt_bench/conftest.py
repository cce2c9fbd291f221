"""The fake judge as a server on this machine, with no waiting between tries."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_judge import KEY, FakeJudge

from balora.evaluation.mt_bench import JudgeEndpoint, endpoint


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeJudge]:
    judge = FakeJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.asked.append(body)
            judge.headers.append(dict(self.headers))
            judge.paths.append(self.path)
            answer = judge.answer(body)
            if answer is None:
                self.close_connection = True
                return
            code, text, headers = answer
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # An abandoned request is still answered, to a closed connection.
    server.handle_error = lambda *args: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield judge
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses between tries, noted and not waited for."""
    noted: list[float] = []
    monkeypatch.setattr(endpoint, "sleep", noted.append)
    return noted


@pytest.fixture
def judge(fake, pauses) -> JudgeEndpoint:
    return JudgeEndpoint(
        fake.url, "judge", max_retries=2, timeout_s=5, price_per_million_input=1000, price_per_million_output=5000
    )
