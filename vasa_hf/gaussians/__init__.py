"""3D Gaussians: rendering (start at `render.py`), density control, binding to a mesh, files."""
