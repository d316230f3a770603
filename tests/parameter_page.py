"""Writes the table of docs/parameters.md anew: `make parameters`."""

from avomni_lib import files, params

PAGE = files.PROJECT_ROOT / "docs" / "parameters.md"

if __name__ == "__main__":
    intro, _, _ = PAGE.read_text().partition("| parameter |")
    PAGE.write_text(f"{intro}{params.table()}\n")
