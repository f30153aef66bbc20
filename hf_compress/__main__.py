"""`python -m hf_compress` is `hf-compress`."""

from hf_compress.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
