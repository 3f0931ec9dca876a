# fastmerge as an image. The kernels are compiled in stages of their own. The CPU's image has no compiler; the other one has
# what Triton builds its launchers with.
#
#   docker build -t fastmerge .                           for CPUs
#   docker build -t fastmerge:cuda --target cuda .        with the CUDA kernels too, for every GPU that they support
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" fastmerge merge recipe.yml merged
#
# PyPI's torch for x86-64 brings CUDA, some gigabytes. An index with smaller builds: --build-arg TORCH_INDEX=URL.

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS cuda-wheel
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv
COPY . /src
RUN python3 -m venv /build && \
    FASTMERGE_CPU=1 FASTMERGE_CUDA=1 FASTMERGE_CUDA_ARCHITECTURES=all /build/bin/pip wheel --no-deps -w /wheels /src

FROM ubuntu:24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
COPY --from=cuda-wheel /wheels /tmp/wheels
RUN python3 -m venv /opt/fastmerge && \
    /opt/fastmerge/bin/pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheels/*.whl)[hub,triton]"
ENV PATH=/opt/fastmerge/bin:$PATH HOME=/tmp NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["fastmerge"]
CMD ["--help"]

FROM debian:bookworm-slim AS cpu-wheel
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv
COPY . /src
RUN python3 -m venv /build && FASTMERGE_CPU=1 FASTMERGE_CUDA=0 /build/bin/pip wheel --no-deps -w /wheels /src

FROM debian:bookworm-slim AS cpu
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
COPY --from=cpu-wheel /wheels /tmp/wheels
RUN python3 -m venv /opt/fastmerge && \
    /opt/fastmerge/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c /tmp/constraints.txt "$(echo /tmp/wheels/*.whl)[hub]"
ENV PATH=/opt/fastmerge/bin:$PATH HOME=/tmp
WORKDIR /work
ENTRYPOINT ["fastmerge"]
CMD ["--help"]
