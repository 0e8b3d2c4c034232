"""No response can make a verdict hang or fail.

They are judged in a process of their own under a limit that is many times what they take; a rule that takes time
quadratic in the length of a response of 100,000 characters would need an hour.
"""

import subprocess
import sys
from pathlib import Path


def test_no_verdict_hangs():
    subprocess.run([sys.executable, str(Path(__file__).with_name("hostile_answers.py"))], check=True, timeout=300)
