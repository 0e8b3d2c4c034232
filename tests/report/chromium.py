"""Pages in a real browser: what it says of them, and a frame of any width that a script may look into."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: pages are not opened in a browser"),
]
_ALWAYS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=NetworkTimeServiceQuerying",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
]
# Where the browser calls home by itself.
_ITS_OWN = re.compile(r"https?://([a-z0-9-]+\.)*(google|googleapis|gvt1|gstatic)\.com[/:]|chrome|about:")


def visit(folder: Path, address: str, width: int, *switches: str) -> str:
    """What the browser prints of the page at `address`. A message on its console fails the test."""
    command = [CHROMIUM, *_ALWAYS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2000", *switches]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def addresses(folder: Path, address: str) -> list[str]:
    """Every address outside its own file that the page at `address` asked for."""
    log = folder / "net.json"
    visit(folder, address, 1200, f"--log-net-log={log}", "--dump-dom")
    asked = set(re.findall(r'"url":"([^"]+)"', log.read_text()))
    return sorted(one for one in asked if not one.startswith(("file:", "data:")) and not _ITS_OWN.match(one))


def look(folder: Path, page: str, script: str, width: int) -> object:
    """The JSON value of `script`, a function body over `d`, the document of `page` in a frame of `width`.

    A window has a least width, a frame has none. The page in the frame runs no script; the one around it looks inside,
    and clicks.
    """
    text = f"""<meta charset="utf-8">
        <iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>
        <pre id="said"></pre><script>
        onload = () => {{ const d = document.querySelector("iframe").contentDocument;
        document.querySelector("#said").textContent = JSON.stringify((() => {{ {script} }})()) }}</script>"""
    (folder / "frame.html").write_text(text, encoding="utf-8")
    said = visit(folder, (folder / "frame.html").as_uri(), max(600, width + 100), "--dump-dom")
    return json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', said, re.DOTALL).group(1)))
