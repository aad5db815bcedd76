# Shortcuts for developers; `just` lists them. CONTRIBUTING.md has the commands without `just`.

set positional-arguments

_default:
    @just --list

# Install all dependencies and the commit hooks
sync:
    uv sync
    uv run prek install

# Lint, format, types, import contracts, the page's JavaScript
check:
    uv run prek run --all-files

# The suite, or the tests that are named
test *args:
    uv run pytest -n auto "$@"

# Tests that take minutes or start services
heavy *args:
    uv run pytest -m heavy "$@"

# A benchmark by its name, for instance: just bench gpu_check --device cpu --tiny --out check
bench name="long_video" *args:
    uv run python benchmarks/{{ name }}.py {{ args }}
