"""`audit.py LOCK`: what pip-audit knows of the versions in a lock file. 0: nothing, or no database to ask; 1: holes."""

import json
import subprocess
import sys

_COMMAND = ("-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json")


def verdict(status, stdout):
    """What to say of pip-audit's answer, and the status to end with.

    Args:
        status: of pip-audit; 1 with holes, and without an answer.
        stdout: its JSON, or nothing where it could not ask.
    """
    try:
        packages = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError):
        packages = []
    asked = [one for one in packages if "skip_reason" not in one]
    if not asked:
        return "audit: no advisory database answers from here: nothing was checked", 0
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for one in asked
        for hole in one["vulns"]
    ]
    skipped = f", {len(packages) - len(asked)} not in the database" if len(packages) > len(asked) else ""
    return "\n".join([f"audit: {len(holes)} known holes in {len(asked)} packages{skipped}", *holes]), int(
        bool(holes or status)
    )


if __name__ == "__main__":
    done = subprocess.run(
        [sys.executable, *_COMMAND, "--requirement", sys.argv[1]],
        capture_output=True,
        text=True,
        check=False,
    )
    said, code = verdict(done.returncode, done.stdout)
    print(said)
    if not done.stdout and "Error" in done.stderr:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
    sys.exit(code)
