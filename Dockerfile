# docker build -t rqstack .                        for a CPU
# docker build -t rqstack --build-arg DEVICE=cuda .   for GPUs; run with --gpus all --shm-size 16g
#
# PyTorch's packages bring their own CUDA libraries and run without a GPU as well: the two differ in what the container
# runtime is asked for, and a GPU needs nothing of the host but its driver.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS cpu
# g++ builds the decoding kernel of rqtransformer.native when it is first used.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

FROM cpu AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${DEVICE}
WORKDIR /workspace/rqstack
COPY Makefile requirements.txt constraints.txt ./
RUN make setup VENV=/opt/rqstack && rm -rf /root/.cache
ENV PATH=/opt/rqstack/bin:$PATH VENV=/opt/rqstack
COPY . .
CMD ["make", "demo"]
