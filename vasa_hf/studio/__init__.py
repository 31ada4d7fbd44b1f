"""What the web page does, without the page: jobs that can be stopped, shared models, videos that are seen while made.

`app.py` wires these functions to a page of Gradio's, and is the only file that knows Gradio. Every long job is a
generator of `Update`s, in which it can be stopped; what it writes lies in its own folder and goes with it.
"""
