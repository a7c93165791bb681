# The image builds its wheel from this tree, and runs every room under one supervisor as a user without privileges.
#
#     docker build -t walbus .
#     docker run -v ./walbus.toml:/etc/walbus/walbus.toml:ro -v walbus:/var/lib/walbus walbus
#
# One room alone: docker run … walbus capture -c /etc/walbus/walbus.toml

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build==1.3.0 \
    && python -m build --outdir /dist \
    && python -m venv /opt/walbus \
    && wheel=$(echo /dist/*.whl) \
    && /opt/walbus/bin/pip install --no-cache-dir "$wheel[redis,search,kafka]"

FROM python:3.12-slim-bookworm
RUN groupadd --system --gid 10001 walbus \
    && useradd --system --uid 10001 --gid walbus --home-dir /var/lib/walbus --create-home walbus
COPY --from=build /opt/walbus /opt/walbus
ENV PATH=/opt/walbus/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WALBUS_DATA_DIR=/var/lib/walbus
USER walbus
WORKDIR /var/lib/walbus
VOLUME /var/lib/walbus
EXPOSE 7070 7071
# Ready means: the log exists and its end is known, so that a reader can start. Address and TLS are the configuration's; a
# relay that asks clients for certificates (tls_client_ca) is shown that of [client]. A container without the relay needs
# another check, or --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=4 \
    CMD file=/etc/walbus/walbus.toml; if [ -e $file ]; then walbus ready -c $file; else walbus ready; fi
STOPSIGNAL SIGTERM
ENTRYPOINT ["walbus"]
CMD ["run", "-c", "/etc/walbus/walbus.toml"]
