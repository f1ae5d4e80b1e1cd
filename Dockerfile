# A node of a swarm: no root, a root file system that can be read-only, and all that it keeps in the volume /data.
#
#   docker build -t rlswarm_jax .
#   docker run -d --name node --init --restart on-failure --stop-timeout 300 --read-only --tmpfs /tmp --cap-drop ALL \
#       --security-opt no-new-privileges -p 4001:4001 -v rlswarm:/data rlswarm_jax \
#       --config=configs/node.py --config.swarm.bootnodes="['/ip4/...']"
#
# The same with podman, which can start a stalled node again: --health-on-failure=restart. See docs/operate.md.
FROM python:3.12-slim

RUN useradd --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin node \
    && install -d -o node -g node -m 0700 /data

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps "$(sed -n 's/^\(setuptools==[^ ]*\).*/\1/p' requirements.lock)" \
    && pip install --no-cache-dir --no-deps --no-build-isolation -r requirements.lock
COPY configs ./configs
COPY experiments ./experiments
COPY rlswarm_jax ./rlswarm_jax
RUN python -m compileall -q configs experiments rlswarm_jax

ENV HOME=/data XDG_CACHE_HOME=/data/cache HF_HOME=/data/huggingface MPLCONFIGDIR=/data/cache/matplotlib \
    PYTHONUNBUFFERED=1 JAX_PLATFORMS=cpu
USER 10001:10001
VOLUME /data
EXPOSE 4001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=10s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/healthz', timeout=5)"]
ENTRYPOINT ["python", "-m", "experiments.run", "--workdir=/data/node", "--resume", "--config.swarm.host=0.0.0.0", \
    "--config.swarm.port=4001", "--config.swarm.health=127.0.0.1:9464"]
CMD ["--config=configs/node.py"]
