"""The parametric head.

`load_parametric_head()` gives a whole head with joints (`ParametricHead`), which VASA-3D binds its Gaussians to: the
built-in one, ICT-FaceKit's or FLAME's. `load_head` gives the linear `HeadMesh` that rendered talkers wear photographs
on. `personal_head` makes either kind of whole head the person of a portrait.
"""
