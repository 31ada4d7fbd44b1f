"""The web page: the only part of the package that imports Gradio.

`app.py` builds the page and serves it; each tab has a file (`talk.py`, `avatar.py`, `compare.py`, `explore.py`,
`about.py`) with its controls and its work. `handler.py` takes their requests, `jobs.py` runs them in turn, `models.py`
holds the pipelines, `files.py` decides which files may be opened. Work is a generator of `Update`s in which it can be
stopped; its files are in a folder of its own, which is removed with it.
"""
