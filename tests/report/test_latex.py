"""The table and the macros in a real LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.made import PEOPLE, Made, quick

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DOCUMENT = r"""
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{graphicx}
\input{report/numbers}
\begin{document}
Table~\ref{tab:personalisation} and \ref{tab:personalisation-grid2-tuned}:
%s
\input{report/main_table}
\includegraphics[width=\linewidth]{report/figures/paired.png}
\end{document}
"""


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="no LaTeX: apt-get install texlive-latex-recommended"
)
def test_the_table_and_every_macro_compile(run: Run, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a_b 50%", "größe & 李 #1 ~^{}$\\\\x")]
    with quick():
        for folder in folders:
            made = Made(folder)
            for place, person in enumerate(PEOPLE):
                for fraction in (0.1, 0.125):
                    made.run(person, fine=0.8 + 0.01 * place, target_data_pct=fraction)
    done = run("report.py", *folders, "--out", tmp_path / "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    macros = re.findall(r"newcommand\{\\(\w+)\}", (tmp_path / "report" / "numbers.tex").read_text())
    assert "persPrimaryOverTunedGainText" in macros
    text = "\n\n".join(rf"{name}: \{name}" for name in macros)
    (tmp_path / "paper.tex").write_text(DOCUMENT % text)
    for _ in range(2):  # the second time the references are known
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 20_000
