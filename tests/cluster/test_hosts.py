"""Nothing of the hosts stays, however the tests end."""

import signal
import subprocess
import sys
from pathlib import Path

import hosts
import psutil
import pytest
from running import wait_for_end

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing() or "there can be hosts"),
]

PROGRAM = """
import sys, time
from hosts import Ground
ground = Ground()
ground.bridge("one", "10.77.0")
host = ground.host("here", ["one"], {})
process = host.start(["sleep", "300"], {"PATH": "/usr/bin:/bin"})
print(ground.folder, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_who_made_them(signum):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    folder = Path(process.stdout.readline().strip())
    family = psutil.Process(process.pid).children(recursive=True)
    assert {"unshare", "sleep"} <= {child.name() for child in family}
    assert (folder / "here" / "root").is_dir()
    links = set(Path("/sys/class/net").iterdir())
    process.send_signal(signum)
    process.communicate()
    wait_for_end(family)
    assert not folder.exists()
    assert set(Path("/sys/class/net").iterdir()) == links
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
