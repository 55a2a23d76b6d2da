"""Speed and quality of compiled models: `mlcrt bench` and `mlcrt eval`."""
