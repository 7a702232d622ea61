"""What mkdocs does besides: pictures that a page takes from outside of this folder come along.

On the repository's own pages ``../experiments/results/...`` is the picture's place; in the site it lies in ``assets``.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"(!\[[^\]]*\]\()\.\./([^)\s]+)(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures."""
    root = Path(config.docs_dir).parent
    for page in files.documentation_pages():
        for _, picture, _ in OUTSIDE.findall(page.content_string):
            name = f"assets/{picture}"
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(root / picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point to them."""
    return OUTSIDE.sub(r"\1assets/\2\3", markdown)
