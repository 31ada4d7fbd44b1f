"""Original checkpoints of other projects, brought into this one's classes and safetensors."""
