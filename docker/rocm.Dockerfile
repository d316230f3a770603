# AV-Omni for AMD cards: ROCm 7.2, JupyterLab and the project. Never built or run on the card.
#
#   docker build -f docker/rocm.Dockerfile -t avomni-rocm .
#   docker run --rm -it --network host --device /dev/kfd --device /dev/dri --group-add video --group-add render \
#     --ipc host --ulimit nofile=65536:65536 -v /mnt/work:/work avomni-rocm
#
# JupyterLab listens on 127.0.0.1:8888: reach it by `ssh -L 8888:127.0.0.1:8888 you@machine`.
FROM rocm/dev-ubuntu-24.04:7.2

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 \
    TRITON_CACHE_DIR=/work/triton HF_HOME=/work/huggingface OMP_NUM_THREADS=1

RUN apt-get update \
    && apt-get install -y --no-install-recommends git make gcc g++ python3 python3-dev python3-venv python3-pip libgl1 \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/avomni
WORKDIR /opt/avomni
RUN make rocm ROCM=7.2 PYTHON=python3

# torch.version.hip is set, there is one triton, bitsandbytes imports, and no wheel is NVIDIA's; else no image is made.
RUN .venv/bin/python -m avomni_lib.training.doctor.image

ENV PATH=/opt/avomni/.venv/bin:$PATH
VOLUME /work
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=127.0.0.1", "--port=8888", "--no-browser", "--allow-root", "--notebook-dir=/opt/avomni"]
