"""Capture: PostgreSQL's WAL through one logical slot, into the relay log.

The way of the data:

    replication    the walsender's connection, frame by frame (the only user of psycopg's COPY BOTH)
    frames         the envelopes: WAL data, keepalive, status update             bytes in, values out
    intake         protocols 1 to 4 in, protocol 1 out, transactions whole       pure
      streamed       what protocols 2 to 4 add                                   bytes in, values out
      pending        a transaction that waits in the spool                       pure
      told           the layouts that the connection told                        pure
      replay         out of the spool, in parts                                  pure
      spool          transactions that are open at the source, in memory and in files
      prepared       prepared ones, durably, until their end
      prepared_ends  ends that the stream does not tell
      spool_files    their files
      spooling       all of these, ready for a connection
    messages       pgoutput protocol 1                                           bytes in, values out
    layouts        a table's layout, from a Relation message or the catalog      pure
    assembly       transactions put together, by a core (`walbus.native`) that takes nearly all messages     pure
      changes        a message of a change as changes of the log
      tables         what a connection told of layouts, and the one that a table's rows use
      rows           tuples of one table, checked, completed, packed
      pieces         layouts, progress and events as pieces
      repeats        what the source sends again, and what is another history
      timelines      the epoch of a commit
      epochs         what a promotion means: switches, and what they lost
      xids           32 bits made 64
    handover       net differences of the bootstrap's, from files into the log
      difference_file  the files
      carrying       from the position that one was made at to the log's end      pure
      places         where one stands between two commits                         pure
    loop           read, append, sync, confirm: one connection's life
      receiving      a round of reading: frames into the intake
      grouping       how long whole transactions wait for others to be synced with them       pure

Instead of the walsender, while a backlog is large:

    catchup        reads in steps through SQL, into the same assembler, then leaves the rest to the stream
      steps        how far each goes, and when they no longer pay                    pure
      stepping     one step after the other: look, peek, durable, move
      peek         the session: look at the slot, peek, move it
      copyrows     the rows of COPY in its binary form                             bytes in, values out

Around it:

    service        the process: connects, verifies, streams, connects again      `run_capture`
    pauses         before it connects again                                      pure
    opening        the log, whose cluster may be away at the start               `opened`
    slices         how soon the kernel runs it again                             `ask_for_short_slices`
    identity       whether the source can be captured, and which it is           `identify`
    resumption     taking up where the log ends
      verification   whether the source can give what follows it            pure
    reconciling    going on behind a lost slot, by consent
    slot           looked at, made, freed
    publication    made from the configured tables; what is lost is told
    watch          the catalog, looked at each second from a thread
      catalog        reads it: one cheap fingerprint, and the whole where that changed
      definition     what it says of the published tables                          pure
      silent         two of those compared: rows that changed without events       pure
      regrouped      what PostgreSQL 14 overlooks of partitions                    pure
      attached       whether an attached partition brought rows
      remembered     the one that was told last, over restarts
      unnumbered     layouts until the log has passed the look that saw them
      noticed        what the log is told of it, and when
    sessions       how sessions are opened: settings, keepalives
    refusals       PostgreSQL's errors as Walbus's, with mends
    notices        what a session that decodes is told beside its rows: skipped rows, and where it begins
    report         the status file
    pgoutput_options   what pgoutput is asked for, by version and configuration  pure
    xact_status    which prepared transactions have ended
    retention      what the slot holds back, and how near it is to being given up
    standby_slots  up to where the server gives what a slot has, by the standbys that come first
    doctor/        what `walbus doctor` says of the source: facts, rules, mends

Confirmation follows durability: the slot is told only what `LogWriter.sync` has returned.
"""

from __future__ import annotations

from walbus.capture.identity import identify
from walbus.capture.opening import opened
from walbus.capture.remembered import CATALOG_FILE
from walbus.capture.service import run_capture
from walbus.capture.slices import ask_for_short_slices

__all__ = ["CATALOG_FILE", "ask_for_short_slices", "identify", "opened", "run_capture"]
