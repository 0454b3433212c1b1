"""`python -m bench [name …]`: a table on stdout, and JSON in bench/results/."""

import argparse
import importlib
import json
import pkgutil
import time
from pathlib import Path

import bench
from bench.kit.machine import machine
from bench.kit.measure import Line

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    found = sorted(
        module.name
        for module in pkgutil.iter_modules(bench.__path__)
        if not module.ispkg and module.name != "__main__"
    )
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"all, or some of: {', '.join(found)}")
    names = parser.parse_args().names
    if unknown := set(names) - set(found):
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are: {', '.join(found)}")
    here = machine()
    print(" · ".join([here["cpu"], *(f"{name} {value}" for name, value in here.items() if name != "cpu")]))
    for name in names or found:
        module = importlib.import_module(f"bench.{name}")
        print(f"\n{name}: {str(module.__doc__).splitlines()[0]}")
        lines: list[Line] = module.run()
        print(table(lines))
        keep(name, here, lines)


def table(lines: list[Line]) -> str:
    """Ratios compare with the first line: only figures of one run on one machine may be compared."""
    width = max(len(line.what) for line in lines)
    rows = []
    for line in lines:
        ratio = line.median / lines[0].median if line.unit == lines[0].unit else None
        spread = f"({shown(min(line.values))} … {shown(max(line.values))})"
        rows.append(
            f"  {line.what:<{width}}  {shown(line.median):>10} {line.unit:<8} {spread:<24}"
            + (f"x{ratio:.2f}" if ratio is not None else "")
        )
    return "\n".join(rows)


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def keep(name: str, here: dict[str, str], lines: list[Line]) -> None:
    RESULTS.mkdir(exist_ok=True)
    result = {
        "bench": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": here,
        "lines": [vars(line) | {"median": line.median} for line in lines],
    }
    path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
