# syntax=docker/dockerfile:1

ARG PYTHON=python:3.12-slim-bookworm

# --- build: pip, the build backend and their caches stay behind here -------------------------------------------------
FROM ${PYTHON} AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1

WORKDIR /src

# Locked and hashed, wheels only: nothing from the network is executed while the image is made. This layer changes only
# when a lock does.
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: --requirement requirements/build.txt \
 && python -m venv --without-pip /opt/postern \
 && /opt/build/bin/pip --python /opt/postern/bin/python install --no-compile \
        --require-hashes --only-binary :all: --requirement requirements/runtime.txt

COPY pyproject.toml README.md LICENSE ./
COPY proxy proxy
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/postern/bin/python install --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/postern/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/postern/lib

# --- final: an interpreter, one directory, no package manager for Python ---------------------------------------------
FROM ${PYTHON}

LABEL org.opencontainers.image.title="postern" \
      org.opencontainers.image.description="An authenticating reverse proxy: sign-in through Logto in front of any web application" \
      org.opencontainers.image.licenses="MIT"

RUN python -m pip uninstall --yes --root-user-action ignore pip

COPY --from=build /opt/postern /opt/postern

# The container's network is its own: reachable from other containers, published only where you publish it.
ENV PATH=/opt/postern/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    POSTERN_LISTEN=0.0.0.0:3000

# Settings are read from config/postern.toml below here, when it is there. Nothing is ever written: run it --read-only.
WORKDIR /postern
USER 65532:65532
EXPOSE 3000
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --start-interval=1s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as http; http.urlopen('http://127.0.0.1:' + os.environ['POSTERN_LISTEN'].rpartition(':')[2] + os.environ.get('POSTERN_PREFIX', '/.postern') + '/healthz', timeout=2)"]

ENTRYPOINT ["postern"]
CMD ["serve"]
