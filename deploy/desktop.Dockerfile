# A desktop or server, with an NVIDIA GPU (driver 580 or newer) or without. From the repository's folder:
#   docker build --file deploy/desktop.Dockerfile --tag edgemask:desktop .
#   docker build --file deploy/desktop.Dockerfile --target build --tag edgemask:build .
# Targets: run (the last, and so the default) has no PyTorch and builds plans from bundles; build exports networks too.

FROM nvcr.io/nvidia/cuda:13.2.0-runtime-ubuntu24.04 AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# GStreamer is for gst: sources and outputs alone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
        gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
    && rm -rf /var/lib/apt/lists/*

# PyCUDA is built from its source, which takes a compiler; that stays in this stage.
FROM nvcr.io/nvidia/cuda:13.2.0-devel-ubuntu24.04 AS wheels
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /opt/pip
ENV PATH=/opt/pip/bin:/usr/local/cuda/bin:$PATH
RUN pip wheel --no-deps --wheel-dir /wheels "pycuda>=2025.1.2"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgemask edgemask
COPY pipeline pipeline
COPY calibration calibration
COPY compile compile
COPY benchmarks benchmarks
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM base AS installed
# hadolint ignore=DL3042
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m venv /opt/edgemask \
    && /opt/edgemask/bin/pip install --find-links /wheels --only-binary pycuda \
        "edgemask[tensorrt,page,mqtt] @ file://$(echo /wheels/edgemask-*.whl)" "cuda-bindings>=13,<14" \
        "opencv-python-headless>=4.10,<6"
COPY deploy/healthcheck.py /opt/edgemask/healthcheck.py
RUN useradd --system --uid 10001 --no-log-init --home-dir /var/lib/edgemask edgemask \
    && install --directory --owner edgemask --group edgemask /var/lib/edgemask /var/cache/edgemask
ENV PATH=/opt/edgemask/bin:$PATH HOME=/var/lib/edgemask \
    EDGEMASK_CACHE=/var/cache/edgemask XDG_CACHE_HOME=/var/cache/edgemask CUDA_CACHE_PATH=/var/cache/edgemask/nv \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
WORKDIR /var/lib/edgemask

FROM installed AS build
# PyTorch for the CPU: it exports and checks. The rest of the extra "compile" but for its OpenCV, which is here without windows.
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install "onnxscript>=0.5" "safetensors>=0.5" "protobuf>=6.33.5" "pooch>=1.8" "requests>=2.33" "urllib3>=2.6.3"
USER 10001
ENTRYPOINT ["python3", "-m", "compile"]
CMD ["--help"]

FROM installed AS run
USER 10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m --retries=3 CMD ["python3", "/opt/edgemask/healthcheck.py"]
ENTRYPOINT ["edgemask"]
CMD ["--config", "/etc/edgemask/edgemask.yaml"]
