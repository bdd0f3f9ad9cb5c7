"""What every part is made of: cells that pass, fail, are measured or do not run, each kept as it finishes, and the report of them all."""

import json
import pathlib
import selectors
import subprocess
import tempfile
import time

PASSED, FAILED, MEASURED, NOT_RUN = "passed", "failed", "measured", "not run"


class NotRun(Exception):
    """A cell that cannot run here, and why."""


class Failed(Exception):
    """A cell that ran and is wrong, and how."""


class Gate:
    """One run of one part: its cells, its time, where they are kept."""

    def __init__(self, part, out, minutes, *, stub, facts):
        self.part, self.out, self.stub, self.facts = part, pathlib.Path(out), stub, facts
        self.start = time.monotonic()
        self.deadline = self.start + 60 * minutes
        self.cells = []
        self.out.mkdir(parents=True, exist_ok=True)
        self.kept = self.out / f"{part}.cells.jsonl"
        self.kept.write_text("")

    def left(self):
        """Seconds that the part still has."""
        return self.deadline - time.monotonic()

    def record(self, name, status, *, reason="", seconds=0.0, data=None, targets=()):
        """targets: (what, value, limit, whether it is met)."""
        cell = dict(name=name, status=status, reason=reason, seconds=round(seconds, 2), data=data or {},
                    targets=[dict(what=what, value=value, limit=limit, met=met) for what, value, limit, met in targets])
        self.cells.append(cell)
        with open(self.kept, "a") as file:
            file.write(json.dumps(cell) + "\n")
        print(f"{status:9}{name}{': ' + reason if reason else ''}", flush=True)
        return status in (PASSED, MEASURED)

    def cell(self, name, body, *, status=PASSED, needs=0.0):
        """Run body() -> data, and say whether it went well; nothing it does stops the others. needs: seconds that must be left to begin."""
        start = time.monotonic()
        if self.left() < needs:
            return self.record(name, NOT_RUN, reason=f"needs {needs:.0f} s, the part has {max(0, self.left()):.0f} s left")
        try:
            data = body()
        except NotRun as error:
            return self.record(name, NOT_RUN, reason=str(error), seconds=time.monotonic() - start)
        except Exception as error:  # whatever it is, the cell has failed and the next one is due
            reason = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            return self.record(name, FAILED, reason=reason, seconds=time.monotonic() - start)
        return self.record(name, status, seconds=time.monotonic() - start, data=data)

    def run(self, command, *, limit, environment=None, late=Failed):
        """The finished process, its output as text. Beyond its own limit it is `late`, as a rule hung and failed; beyond the part's time
        it did not run."""
        allowed = min(limit, self.left())
        try:
            return subprocess.run([str(each) for each in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, errors="replace", timeout=max(1.0, allowed), env=environment)
        except FileNotFoundError as error:
            raise NotRun(f"{command[0]} is not here") from error
        except subprocess.TimeoutExpired as error:
            raise (late if allowed >= limit else NotRun)(f"did not end within {allowed:.0f} s") from error

    def stream(self, name, command, *, limit, environment=None, status=MEASURED, targets=lambda name, data: (), prefix=""):
        """Cells of a program that prints one JSON object per line: {"cell": name, ...} and, where it could not, "failed" or "not_run" with
        the reason. A program that ends badly, or falls silent, is a failed cell of its own."""
        begun, answers = time.monotonic(), 0

        def body():
            nonlocal begun, answers
            for line in self._lines(command, limit, environment):
                data = json.loads(line)
                cell = prefix + data.pop("cell")
                seconds, begun = time.monotonic() - begun, time.monotonic()
                if "failed" in data:
                    self.record(cell, FAILED, reason=data.pop("failed"), seconds=seconds, data=data)
                elif "not_run" in data:
                    self.record(cell, NOT_RUN, reason=data.pop("not_run"), data=data)
                else:
                    self.record(cell, data.pop("status", status), seconds=seconds, data=data, targets=targets(cell, data))
                answers += 1
            if not answers:
                raise Failed("it ended without a result")

        try:
            body()
        except NotRun as error:
            self.record(name, NOT_RUN, reason=f"{error} ({answers} results before that)")
        except Exception as error:
            self.record(name, FAILED, reason=f"{error} ({answers} results before that)")

    def _lines(self, command, limit, environment):
        """Lines that begin with {, as they come."""
        until = min(time.monotonic() + limit, self.deadline)
        with tempfile.TemporaryFile("w+") as errors:
            try:
                process = subprocess.Popen([str(each) for each in command], stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL,
                                           env=environment)
            except FileNotFoundError as error:
                raise NotRun(f"{command[0]} is not here") from error
            try:
                yield from _lines_until(process, until)
            except TimeoutError:
                late = Failed if self.left() > 0 else NotRun
                raise late(f"did not end within {limit if late is Failed else time.monotonic() - self.start:.3g} s") from None
            finally:
                process.kill()
                process.wait()
                process.stdout.close()
            if process.returncode:
                errors.seek(0)
                raise Failed(f"ended with status {process.returncode}: {errors.read().strip()[-600:]}")

    def finish(self):
        """Write the report and its JSON. The exit status: 1 if a cell failed, 2 if none ran at all."""
        statuses = [cell["status"] for cell in self.cells]
        summary = {each: statuses.count(each) for each in (PASSED, MEASURED, FAILED, NOT_RUN)}
        met = [target["met"] for cell in self.cells for target in cell["targets"]]
        run = dict(part=self.part, seconds=round(time.monotonic() - self.start, 1), summary=summary,
                   targets_met=sum(met), targets_missed=len(met) - sum(met), **self.facts, cells=self.cells)
        (self.out / f"{self.part}.json").write_text(json.dumps(run, indent=1))
        (self.out / f"{self.part}.md").write_text(markdown(run))
        return 1 if summary[FAILED] else 0 if summary[PASSED] or summary[MEASURED] else 2


def _lines_until(process, until):
    """Each line of its output that begins with {; TimeoutError when it goes on too long. Waits for its end."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=max(0.0, until - time.monotonic())):
                raise TimeoutError
            read = process.stdout.read1(1 << 16)
            if not read:
                break
            *lines, pending = (pending + read).split(b"\n")
            yield from (line.decode() for line in lines if line.startswith(b"{"))
    try:
        process.wait(timeout=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


# ---------------------------------------------------------------------------------------------------- the report
def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(run):
    summary = run["summary"]
    lines = [f"# gpu_gate, {run['part']}", "", f"`{run['command']}`, {run['date']}", ""]
    lines += [f"* {name}: {run[name] or 'unknown'}" for name in ("gpu", "driver", "cuda", "cublas", "cpu", "torch", "commit")]
    lines += ["", f"{summary[PASSED]} passed, {summary[MEASURED]} measured, {summary[FAILED]} failed, {summary[NOT_RUN]} not run; "
              f"{run['targets_met']} targets met, {run['targets_missed']} missed; {run['seconds']:.0f} s", ""]
    if run["stub"]:
        lines += ["**The stub: no device was used. This shows that the gate runs, and nothing about speed.**", ""]
    targets = [(cell["name"], target) for cell in run["cells"] for target in cell["targets"]]
    if targets:
        lines += ["## Targets", "", "Set for an H200.", "", "| target | value | limit | |", "| --- | --- | --- | --- |"]
        lines += [f"| {of['what']} ({name}) | {shown(of['value'])} | {of['limit']} | {'met' if of['met'] else '**missed**'} |"
                  for name, of in targets]
        lines += [""]
    lines += ["## Cells", "", "| cell | status | what came out |", "| --- | --- | --- |"]
    for cell in run["cells"]:
        data = ", ".join(f"{name} {shown(value)}" for name, value in cell["data"].items())
        status = f"**{cell['status']}**" if cell["status"] == FAILED else cell["status"]
        lines.append(f"| {cell['name']} | {status} | {(cell['reason'] or data).replace('|', '/').replace(chr(10), ' ')} |")
    return "\n".join([*lines, ""])
