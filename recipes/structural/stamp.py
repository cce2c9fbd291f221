"""Give the rows of a CSV file a column created_date: one an hour from 2023 on, in an order drawn by seed 0."""

import csv
import random
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

source, target = map(Path, sys.argv[1:])
with open(source, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
hours = list(range(len(rows)))
random.Random(0).shuffle(hours)
start = datetime(2023, 1, 1, tzinfo=timezone.utc)
target.parent.mkdir(parents=True, exist_ok=True)
with open(target, "w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, [*rows[0], "created_date"])
    writer.writeheader()
    for row, hour in zip(rows, hours, strict=True):
        writer.writerow(row | {"created_date": (start + timedelta(hours=hour)).isoformat()})
