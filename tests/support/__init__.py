"""What tests share. Import as `from support.waiting import wait_for` (pytest puts `tests/` on the path).

Fixtures (tests/conftest.py):

    pg_server       the session's `walbus.demo.postgres.EmbeddedPostgres` (wal_level=logical, 40 slots and senders);
                    `pytest --pg=14` to `--pg=18` (default), `--pg=14,17`, `--pg=all`, `--pg=/usr/local/pgsql`
                    (`support.postgres_programs` says where each comes from). Never stop or kill it.
    pg_version      the word of --pg that this run of the test has; of a server: `connection.info.server_version`
    own_pg_server   makes servers that a test may stop, kill and restart:
                        server = own_pg_server(max_wal_senders="5")      # settings by keyword; version="16"
                        server.kill(); server.start(); server.restart("immediate"); server.stop("fast")
                        server = own_pg_server(contrib=True)             # hstore, ltree … on 16 and 18 too
                        server.program("pg_basebackup")                  # the server's own, or 18's
                        with fresh_database(server) as database: ...     # from support.database
    database        a fresh database: `.dsn` (URL), `.connect()` (autocommit), `.execute(sql, params)` -> rows,
                    `.value(sql)`, `.insert_lsn()`, `.confirmed_lsn(slot)`, `.name`, `.server`. At the end walsenders
                    are ended, slots dropped, the database dropped; threads that stream from it must end themselves.
    target_database a fresh database for a PostgreSQL sink, on a server of its own beside `pg_server`
    oracle          makes the second slot: `truth = oracle("walbus")`, later `truth.transactions(since=lsn)`
                    (`support.oracle`); `support.log_view.log_transactions(reader)` gives the log in the same form.
    redis_url       URL of the session's Redis, emptied. `own_redis` is one to kill by `.pid`.
    client          a client of that Redis, for texts.
    redis_cluster   the session's Redis Cluster, emptied. `support.redis_cluster.local_cluster` makes one to kill.
    opensearch_url  URL of the session's OpenSearch, emptied; a JVM with jars from Maven (`support.opensearch_server`).
    elasticsearch_url  the same of an Elasticsearch.
                    `own_opensearch` is one to `.stop()`, `.start()` and kill by `.pid`.
    kafka           addresses of the session's Apache Kafka, one broker; jars from Maven (`support.kafka_server`).
                    `own_kafka` is a cluster whose broker may be killed; `local_kafka(brokers=3)` has three.
    guarded         the session's Kafka with ACLs (`support.guarded_kafka`, `support.kafka_access`).
    free_port       a TCP port of the loopback. `walbus.demo.postgres.free_port()` gives more.
    open_folder     an empty folder that every user can reach; tmp_path is closed to PostgreSQL's user under root.

Modules:

    support.walbus_command  `walbus` with arguments, to its end (`walbus`) or until it is stopped (`Running`)
    support.whole_system, support.single_rooms   all rooms by `walbus run`, or each by itself where none ends meanwhile
    support.described_server   a server against its OpenAPI document: the same routes, and answers as it says
    support.waiting     wait_for(condition, deadline, what=…): instead of sleeping
    support.plain_http  `httpx.get` and the like without TLS, and without what that costs each time
    support.order       the order in which workers take tests
    support.model_source, support.sink_writing   a source without PostgreSQL, and what a sink is given of it
    support.compare     a source table against SQLite, tantivy, Redis or JSON lines, value by value
    support.capturing   capture in a thread, or as a process to kill, into a log of the file engine or of `memory_log`
    support.hard_workload   what a change feed must survive, from many sessions, the same again for the same seed
    support.folding     the log folded row by row equals the source's tables
    support.zoo         a table for every type that a column can have, with hard values (zoo_herd: in few wide tables;
                        odd_names: names that need quotes; hostile: settings of a role or database that are against us)
    support.value_texts canonical and odd texts of values, for hypothesis
    support.memory_log  a LogWriter in memory: what is durable, what a crash leaves, a full disk
    support.tcp_proxy   a proxy that resets, goes half-open, or passes one byte at a time
    support.pgoutput_bytes, support.captured_pgoutput   pgoutput messages, made and captured
    support.services    how a service is found: environment, program, Docker; WALBUS_REQUIRE_SERVICES=1 fails
                        instead of skipping
"""
