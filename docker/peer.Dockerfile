# A peer: `docker run -v commonweights:/data IMAGE join TICKET`. Build from the repository's root:
#
#   docker build -f docker/peer.Dockerfile -t commonweights/peer .                                for CPUs
#   docker build -f docker/peer.Dockerfile -t commonweights/peer:cuda --build-arg TORCH_INDEX= .  for NVIDIA GPUs
#
# Both come from the same base: torch's CUDA build brings its own CUDA libraries, the driver comes from the host
# (docker run --gpus all, with the NVIDIA container toolkit).

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where torch is taken from: the index of CPU builds; empty, PyPI's, which on Linux is the CUDA build.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/commonweights
ENV PATH=/opt/commonweights/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt pyproject.toml ./
COPY docker/requirements.py docker/
# The dependencies are a layer of their own, which a change of our code leaves as it is.
RUN python docker/requirements.py > requirements.txt \
 && pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -r requirements.txt \
 && rm -rf /opt/commonweights/lib/python3*/site-packages/torch/test /opt/commonweights/lib/python3*/site-packages/torch/include \
 && find /opt/commonweights -path '*/site-packages/*' -name tests -prune -exec rm -rf {} +
COPY README.md LICENSE ./
COPY protos protos
COPY configs configs
COPY peer peer
COPY coordinator coordinator
RUN pip install --no-deps --target /opt/project .

FROM ${PYTHON_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
# Everything that is kept (identity, log, data, state) lies in /data; the rest of the file system may be read-only, with
# a tmpfs at /tmp.
RUN useradd --uid 10001 --create-home --home-dir /data --shell /usr/sbin/nologin commonweights
COPY --from=build /opt/commonweights /opt/commonweights
COPY --from=build /opt/project /opt/project
LABEL org.opencontainers.image.title="Commonweights peer" \
      org.opencontainers.image.description="Takes part in training an open model in common" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/project/bin:/opt/commonweights/bin:$PATH PYTHONPATH=/opt/project \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HOME=/data/huggingface
USER commonweights
WORKDIR /data
VOLUME /data
# Ctrl-C and `docker stop` hand in what is trained; that takes at most 10 seconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=2 CMD ["commonweights", "health"]
ENTRYPOINT ["tini", "--", "commonweights"]
CMD ["--help"]
