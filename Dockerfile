# The light command (no torch, no MindSpore) as a user without rights, of packages that are pinned by their hashes:
#   docker build -t ckptforge . && docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" ckptforge inspect model.ckpt
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
# hadolint ignore=DL3008  # compiles the kernels, and stays behind
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -r /var/lib/apt/lists/*
RUN pip wheel --no-cache-dir --wheel-dir /wheels --only-binary :all: --require-hashes --requirement packaging/requirements.txt \
    && pip install --no-cache-dir --only-binary :all: --require-hashes --requirement packaging/build-requirements.txt \
    && pip wheel --no-cache-dir --wheel-dir /wheels --no-deps --no-build-isolation .

FROM python:3.13-slim
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013  # what lies in /wheels is pinned
RUN pip install --no-cache-dir --no-index --find-links /wheels ckptforge \
    && rm -r /wheels \
    && useradd --create-home --uid 1000 ckptforge
USER 1000
WORKDIR /data
ENTRYPOINT ["ckptforge"]
CMD ["--help"]
