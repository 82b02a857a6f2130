"""Every command under hostile conditions: whether status and files are as promised, one line each.

    python benchmarks/hostile.py            # all, about half an hour on two cores
    python benchmarks/hostile.py --fast     # fit and predict, and three kills instead of ten
    python benchmarks/hostile.py --only ascii "no home"

A line is "ok" or "FAIL", the command, the condition, and what was found. The exit status is the number of failures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = {
    "fit": ["--depth", "2"],
    "compare": ["--depth", "2", "--width", "8", "--epochs", "30"],
    "paths": ["--depth", "1", "--width", "8", "--steps", "5"],
    "predict": [],
}
RESUMES = ("fit", "compare")
STRICT = {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_TRANSFER_GUARD": "disallow"}
#: Bytes that a small file system has, beyond which it is full: at the start, while checkpoints or results are written.
DISKS = (64 << 10, 320 << 10, 512 << 10, 768 << 10)
NOBODY = 54321


@dataclasses.dataclass
class Bench:
    """Where things are: data, a model to predict with, compiled code."""

    folder: pathlib.Path
    data: pathlib.Path
    model: pathlib.Path
    environment: dict[str, str]

    def arguments(self, command: str, output: pathlib.Path) -> list[str]:
        start = [sys.executable, "-m", f"nftk_jax.{command}"]
        if command == "predict":
            return [*start, "--model", str(self.model), "--input", str(self.data), "--output", str(output)]
        return [*start, "--dataset", str(self.data), *FLAGS[command], "--output", str(output)]


@dataclasses.dataclass
class Outcome:
    """How a run ended."""

    status: int
    out: str
    error: str

    @property
    def line(self) -> str:
        """What it said on standard error, cut."""
        lines = self.error.strip().splitlines()
        return f"status {self.status}, {len(lines)} lines on stderr" + (f": {lines[-1][:150]}" if lines else "")

    @property
    def one_line(self) -> bool:
        """Whether it failed as promised: in exactly one line."""
        return self.status in (1, 2) and self.error.count("\n") == 1


def call(
    bench: Bench, arguments: list[str], *, env: Mapping[str, str | None] | None = None, shell: str = "", cwd=None
) -> Outcome:
    """Run a command; `shell` is a script that gets it as "$@"."""
    environment = dict(bench.environment)
    for name, value in (env or {}).items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    if shell:
        arguments = ["bash", "-c", shell, "bash", *arguments]
    done = subprocess.run(arguments, env=environment, cwd=cwd or bench.folder, capture_output=True, timeout=600)
    return Outcome(done.returncode, *(text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)))


def target(command: str, folder: pathlib.Path, name: str = "out") -> pathlib.Path:
    return folder / (f"{name}.npz" if command == "predict" else name)


def complete(command: str, output: pathlib.Path) -> bool:
    """Whether a result is whole."""
    if command == "predict":
        return output.is_file() and set(np.load(output)) == {"scores", "labels"}
    own = {"fit": ("omega.csv", "model.json"), "paths": ("terms.npz",), "compare": ()}
    names = ("metrics.json", "report.html", *own[command])
    return all((output / name).is_file() for name in names) and len(list((output / "figures").glob("*.png"))) > 1


def succeeds(command: str, output: pathlib.Path, done: Outcome) -> str:
    """What is wrong with a run that should have succeeded, and said nothing on standard error."""
    if done.status or done.error:
        return done.line
    return "" if complete(command, output) and alone(output) else f"files: {listing(output.parent)}"


def alone(output: pathlib.Path) -> bool:
    """Whether nothing but the result is there."""
    return [path.name for path in output.parent.iterdir()] == [output.name]


def listing(folder: pathlib.Path) -> str:
    return " ".join(sorted(path.name for path in folder.iterdir())) or "none"


Check = Callable[[Bench, str, pathlib.Path], tuple[str, str]]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a condition: a function to (what is wrong or "", what was found)."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def simply(name: str, env: Mapping[str, str | None]) -> None:
    """A condition that is a matter of the environment, and under which a command succeeds."""

    def run(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
        done = call(bench, bench.arguments(command, target(command, folder)), env=env)
        return succeeds(command, target(command, folder), done), done.line

    CHECKS[name] = run


simply("nothing unusual", {})
simply("MPLBACKEND inline", {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
simply("MPLBACKEND unknown", {"MPLBACKEND": "unknown"})
for flag, value in STRICT.items():
    simply(f"{flag}={value}", {flag: value})
simply("strict JAX flags, all", dict(STRICT))


@check("ascii locale")
def ascii_locale(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    output = target(command, folder, "ergebnis-\u00fc")
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = call(bench, bench.arguments(command, output), env=env)
    return succeeds(command, output, done), done.line


@check("PYTHONIOENCODING=ascii")
def ascii_streams(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    output = target(command, folder, "ergebnis-\u00fc")
    done = call(bench, bench.arguments(command, output), env={"PYTHONIOENCODING": "ascii"})
    return succeeds(command, output, done), done.line


@check("matplotlibrc asks for LaTeX and a font that is not there")
def matplotlibrc(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    home = bench.folder / "matplotlib"
    home.mkdir(exist_ok=True)
    (home / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\nfigure.figsize: 1, 1\n")
    done = call(bench, bench.arguments(command, target(command, folder)), env={"MATPLOTLIBRC": str(home)})
    return succeeds(command, target(command, folder), done), done.line


def as_nobody(bench: Bench, command: str, folder: pathlib.Path, env: dict[str, str | None]) -> tuple[str, str]:
    """Run as a user without an entry among the users, who keeps no compiled code and is told so once."""
    folder.chmod(0o777)
    arguments = bench.arguments(command, target(command, folder))
    if os.geteuid() == 0:
        arguments = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *arguments]
    done = call(bench, arguments, env={"JAX_COMPILATION_CACHE_DIR": None, **env})
    notes = done.out.count("note: compiled code is not kept")
    wrong = succeeds(command, target(command, folder), done)
    return wrong or ("" if notes == 1 else f"{notes} notes"), f"{done.line}, {notes} notes"


@check("no home")
def no_home(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    return as_nobody(bench, command, folder, {"HOME": None})


@check("read-only home")
def read_only_home(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    home = bench.folder / "home"
    home.mkdir(mode=0o555, exist_ok=True)
    return as_nobody(bench, command, folder, {"HOME": str(home)})


@check("full disk under the cache of compiled code")
def full_cache(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    with small_disk(bench.folder / "cache", 300 << 10) as cache:
        if cache is None:
            return "", "skipped: mounting is not permitted"
        done = call(
            bench,
            bench.arguments(command, target(command, folder)),
            env={"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )
    notes = done.out.count("note: ")
    wrong = succeeds(command, target(command, folder), done)
    return wrong or ("" if notes <= 1 else f"{notes} notes"), f"{done.line}, {notes} notes"


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[pathlib.Path | None]:
    """A file system of so many bytes, or None where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def failed_as_promised(command: str, output: pathlib.Path, done: Outcome) -> str:
    """What is wrong with a run that may fail for want of room: one line, and a whole result, its numbers or nothing."""
    if not done.status:
        return succeeds(command, output, done)
    if not done.one_line:
        return done.line
    left = {path.name for path in output.parent.iterdir()}
    if output.name in left and "the results are in" in done.error and (output / "metrics.json").exists():
        left -= {output.name}
    if "--resume goes on" in done.error:
        left -= {f".{output.name}-checkpoint"}
    return f"left {' '.join(sorted(left))}; {done.line}" if left else ""


def full_disk(size: int) -> Check:
    def run(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
        with small_disk(folder, size) as disk:
            if disk is None:
                return "", "skipped: mounting is not permitted"
            done = call(bench, bench.arguments(command, target(command, disk)))
            return failed_as_promised(command, target(command, disk), done), f"{done.line}; left {listing(disk)}"

    return run


def file_limit(kib: int) -> Check:
    def run(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
        output = target(command, folder)
        done = call(bench, bench.arguments(command, output), shell=f'ulimit -f {kib}; exec "$@"')
        return failed_as_promised(command, output, done), f"{done.line}; left {listing(folder)}"

    return run


for size in DISKS:
    CHECKS[f"disk of {size >> 10} KiB"] = full_disk(size)
for kib in (8, 300):
    CHECKS[f"files of at most {kib} KiB"] = file_limit(kib)


def streams(name: str, shell: str, *, quiet: bool = True, status: int = 0) -> None:
    def run(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
        output = target(command, folder)
        done = call(bench, bench.arguments(command, output), shell=shell)
        if done.status != status or (quiet and done.error):
            return done.line, ""
        return ("" if complete(command, output) and alone(output) else f"files: {listing(folder)}"), done.line

    CHECKS[name] = run


streams("standard output closed", '"$@" >&-')
streams("standard output and error closed", '"$@" >&- 2>&-')
streams("its reader gone after a line", 'set -o pipefail; "$@" | head -n 1')
streams("its reader gone at once", 'set -o pipefail; "$@" | true')
streams("standard output full", '"$@" >/dev/full', quiet=False, status=1)


@check("a name of 250 letters")
def long_name(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    output = target(command, folder, "n" * 250)  # 254 with predict's ending
    done = call(bench, bench.arguments(command, output))
    return succeeds(command, output, done), done.line


@check("a name of 300 letters")
def too_long_name(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    done = call(bench, bench.arguments(command, target(command, folder, "n" * 300)))
    return ("" if done.one_line and done.status == 2 and not list(folder.iterdir()) else done.line), done.line


@check("current directory gone")
def no_directory(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    done = call(
        bench, bench.arguments(command, target(command, folder)), shell='mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    )
    return succeeds(command, target(command, folder), done), done.line


@check("current directory gone, output relative")
def nowhere(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    arguments = bench.arguments(command, target(command, pathlib.Path("there")))
    done = call(bench, arguments, shell='mkdir gone; cd gone; rmdir ../gone; exec "$@"')
    named = done.one_line and done.status == 2 and "current directory" in done.error
    return "" if named else done.line, done.line


@check("random.py in the current directory")
def shadow_random(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    return shadow(bench, command, folder, "random.py")


@check("jax.py in the current directory")
def shadow_jax(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    return shadow(bench, command, folder, "jax.py")


def shadow(bench: Bench, command: str, folder: pathlib.Path, name: str) -> tuple[str, str]:
    (folder / name).write_text("number = 4\n")
    done = call(bench, bench.arguments(command, target(command, folder)), cwd=folder)
    good = done.one_line and done.status == 2 and name in done.error
    return "" if good else done.line, done.line


@check("two at once into one output")
def two_at_once(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    output = target(command, folder)
    both = [start(bench, bench.arguments(command, output)) for _ in range(2)]
    done = [finish(process) for process in both]
    good = sorted(done, key=lambda one: one.status)
    if command != "predict" and not ([one.status for one in good] == [0, 2] and "is being written by" in good[1].error):
        return "; ".join(one.line for one in good), ""
    return "" if complete(command, output) and alone(output) else f"files: {listing(folder)}", good[1].line


@check("two at once without an output")
def two_by_default(bench: Bench, command: str, folder: pathlib.Path) -> tuple[str, str]:
    if command == "predict":
        return "", "has no default output"
    arguments = bench.arguments(command, folder)[:-2]
    both = [start(bench, arguments, cwd=folder) for _ in range(2)]
    done = [finish(process) for process in both]
    found = [path.name for path in (folder / "runs").iterdir()]
    good = not any(one.status for one in done) and len(found) == 2
    return "" if good else "; ".join(one.line for one in done), " ".join(found)


def start(bench: Bench, arguments: list[str], cwd: pathlib.Path | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments, env=bench.environment, cwd=cwd or bench.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[bytes]) -> Outcome:
    out, error = process.communicate(timeout=600)
    return Outcome(process.returncode, out.decode(), error.decode())


def killed(sent: signal.Signals) -> Check:
    def run(bench: Bench, command: str, folder: pathlib.Path, kills: int = 10) -> tuple[str, str]:
        output = target(command, folder)
        clock = time.perf_counter()
        if failure := succeeds(command, output, call(bench, bench.arguments(command, output))):
            return failure, "not killed"
        seconds, rng, resumed = time.perf_counter() - clock, random.Random(0), 0
        shutil.rmtree(output) if output.is_dir() else output.unlink()
        for number in range(kills):
            resumable = bool(number) and (folder / f".{output.name}-checkpoint" / "settings.json").exists()
            resumed += resumable
            process = start(bench, [*bench.arguments(command, output), *(["--resume"] if resumable else [])])
            time.sleep(rng.uniform(0.02, 1.0) * seconds)
            process.send_signal(sent)
            done = finish(process)
            if wrong := _after_kill(command, output, done, sent):
                return f"kill {number}: {wrong}", ""
            if output.exists():
                shutil.rmtree(output) if output.is_dir() else output.unlink()
        resumable = (folder / f".{output.name}-checkpoint" / "settings.json").exists()
        done = call(bench, [*bench.arguments(command, output), *(["--resume"] if resumable else [])])
        return succeeds(command, output, done), f"{kills} kills, {resumed + resumable} times resumed"

    return run


def _after_kill(command: str, output: pathlib.Path, done: Outcome, sent: signal.Signals) -> str:
    if output.exists() and not complete(command, output):
        return f"half-written: {listing(output.parent)}"
    if sent == signal.SIGKILL or done.status in (
        0,
        -sent,
    ):  # or it came before the command could know, or after the end
        return ""
    left = {path.name for path in output.parent.iterdir()} - {output.name}
    promised = {f".{output.name}-checkpoint"} if "--resume goes on" in done.error else set()
    if done.status != 128 + sent or done.error.count("\n") != 1 or left != promised:
        return f"{done.line}; left {listing(output.parent)}"
    return ""


CHECKS["SIGTERM at random moments, then resumed"] = killed(signal.SIGTERM)
CHECKS["SIGKILL at random moments, then resumed"] = killed(signal.SIGKILL)


@contextlib.contextmanager
def prepared(commands: list[str]) -> Iterator[Bench]:
    """Small data of three classes, and a model of them."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, 80)
        x = (rng.normal(size=(80, 4)) + np.eye(3, 4)[y] * 3).astype(np.float32)
        data = folder / "small.npz"
        np.savez(data, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("JAX_", "MPL", "PYTHON", "LC_"))}
        cache = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", folder / "compiled"))
        environment |= {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        bench = Bench(folder, data, folder / "model", environment)
        for command in ("fit", *{"compare", "paths"}.intersection(commands)):  # compiles what the others use
            done = call(bench, bench.arguments(command, folder / "model" if command == "fit" else folder / command))
            if done.status:
                sys.exit(f"{command} fails when nothing is hostile: {done.line}")
        yield bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="fit and predict only, and three kills")
    parser.add_argument("--only", nargs="+", default=[""], help="conditions whose names have one of these texts")
    parser.add_argument("--commands", nargs="+", choices=tuple(FLAGS), help="these commands only")
    options = parser.parse_args()
    failures, commands = 0, options.commands or (["fit", "predict"] if options.fast else list(FLAGS))
    with prepared(commands) as bench:
        for name, condition in CHECKS.items():
            if not any(text in name for text in options.only):
                continue
            for command in commands:
                with tempfile.TemporaryDirectory(dir=bench.folder, prefix="run-") as folder:
                    extra = {"kills": 3} if options.fast and "random moments" in name else {}
                    wrong, found = condition(bench, command, pathlib.Path(folder), **extra)
                failures += bool(wrong)
                print(f"{'FAIL' if wrong else 'ok':<5}{command:<9}{name}: {wrong or found}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(main(), 100))
