"""How RocksDB is set up: what of memory each part may take, and how much work is left for later.

    block cache       blocks, and indexes and filters of table files, so that their memory does not grow with the data;
                      those in parts, for the cache takes nothing that is larger than its shards of 1 MiB
    write buffers     all families together; the largest fills up first and is flushed
    max_open_files    bounds the readers of table files that are kept
    write-ahead log   bounds what a start has to replay

All families are flushed together (`atomic_flush`). So whatever is lost of the write-ahead log, the store is a state
that it once had, and never entries without the position that they belong to.
"""

from __future__ import annotations

from typing import Final

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    ReadOptions,
)

CACHE_BYTES: Final = 64 << 20
WRITE_BUFFER_BYTES: Final = 64 << 20
ALL_WRITE_BUFFERS_BYTES: Final = 128 << 20
_WAL_BYTES: Final = 256 << 20
_READAHEAD_BYTES: Final = 256 << 10
_METADATA_BYTES: Final = 16 << 10  #: parts of an index or filter


def database_options(cache: Cache) -> Options:
    """Of the database, and of its family of documents."""
    options = family_options(cache)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_atomic_flush(True)
    options.set_allow_concurrent_memtable_write(False)  # there is one writer; a batch in key order goes in quicker so
    options.set_max_total_wal_size(_WAL_BYTES)
    options.set_db_write_buffer_size(ALL_WRITE_BUFFERS_BYTES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(4)
    options.set_max_open_files(512)
    return options


def family_options(cache: Cache) -> Options:
    """Of entries, change index, missing keys and completions."""
    options = Options(raw_mode=True)
    blocks = BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_bloom_filter(10, False)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_index_type(BlockBasedIndexType.two_level_index_search())
    blocks.set_partition_filters(True)
    blocks.set_metadata_block_size(_METADATA_BYTES)
    blocks.set_pin_top_level_index_and_filter(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    return options


def scan_options() -> ReadOptions:
    """Of reading many entries in order: many blocks at a time, none of which is kept in the place of the applier's."""
    options = ReadOptions()
    options.fill_cache(False)  # type: ignore[call-arg]  # the stubs forget it
    options.set_readahead_size(_READAHEAD_BYTES)
    return options
