"""OpenVINO: the proven graph on CPUs, in FP32."""
