"""Load models and compute their outputs, with torch or with OpenVINO."""
