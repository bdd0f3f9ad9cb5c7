"""The tables of docs/reliability.md, made from the registry between two marks; everything around them is written by hand."""

BEGIN, END = "<!-- made by tools/reliability.py --write: begin -->", "<!-- end -->"

GROUPS = {
    "MF": "model files", "CF": "configuration", "PR": "prompts and parameters", "NU": "numbers", "KV": "caches and rollback",
    "ST": "statistics of acceptance", "RS": "resources", "TH": "threads, fork, signals, exit", "CX": "cancelling, streaming",
    "SK": "long runs", "GP": "devices", "SE": "security"}


def line(*cells):
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def shown(test):
    """`tests/python/` says nothing that `test_x.py::` does not."""
    return f"`{test.removeprefix('tests/python/')}`"


def last(row, results):
    """The worst last result of its tests, with the oldest date of those that passed."""
    known = [results.get(test) for test in row["tests"]]
    for worst in ("failed", "missing", "not run"):
        if dates := [date for each in known if each for result, date in [each] if result == worst]:
            return f"**{worst}**, {max(dates)}"
    dates = [each[1] for each in known if each]
    if not dates:
        return "never run"
    rest = known.count(None)
    return f"passed, {min(dates)}" + (f"; {rest} of {len(known)} never run" if rest else "")


def row_tables(rows, results):
    for prefix, name in GROUPS.items():
        yield from ["", f"### {prefix}: {name}", "", line("", "fault", "what happens instead", "tests", "tier", "last result")]
        yield line(*["---"] * 6)
        for row in rows:
            if row["id"].startswith(prefix):
                tests = "<br>".join(map(shown, row["tests"]))
                yield line(row["id"], row["fault"], row["promise"], tests, row["tier"], last(row, results))


def rule_table(rules):
    yield from ["", "## Rules", "", line("", "rule", "where the code keeps it", "planted bugs that break it, each killed"), line(*["---"] * 4)]
    for number, rule in enumerate(rules, 1):
        yield line(number, rule["rule"], rule["kept"], "; ".join(rule["planted"]))


def bug_table(bugs):
    yield from ["", "## Bugs of others", "", line("bug", "planted here as"), line("---", "---")]
    for bug in bugs:
        yield line(bug["bug"], "; ".join(bug["planted"]))


def page(text, rows, bugs, rules, results):
    """The page with its tables made anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    lines = [BEGIN, "", f"## {len(rows)} rows", *row_tables(rows, results), *rule_table(rules), *bug_table(bugs), "", END]
    return head + "\n".join(lines) + tail
