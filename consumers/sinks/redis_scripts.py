"""The Lua that Redis runs for the sink: each call compares versions and writes, with nothing in between.

Versions are compared as numbers, which is exact below 2^53, and stored as the very strings that came as arguments:
Lua never prints one. A row's version is `seq:mark`: a field of its hash, or a key beside its text. A deleted row
leaves its version in the key beside (a tombstone, with a time to live), and a truncated table leaves a floor below
which no change of the log applies. A row that expires has its version in the key beside too, which outlives it as a
tombstone does. Behind a text's version, on a line of its own, may stand the columns that it was made of.

Where rows of all parts of a group lie together, a hash has the part that wrote it behind its version, as in
`seq:mark:i-of-n`; a text has its version in a key of the part's. Marks are numbers of one part: those of another say
nothing, its seqs do, and its rows are not swept.

Every call that writes rows, or what is noted beside them, has the fence: the checkpoint that is stored must be the one
that this sink stored last (or none, if it never did). If a server came back empty, or another process wrote, nothing is
written, and the answer is -1.

Redis goes on with a MULTI behind a script that failed. So each script that writes rows counts itself as done, and the
checkpoint is stored only behind all of them.

In a cluster a script has keys of one slot, so its fence lies there too: the name of the writer that wrote into the slot
last. Names rise: a writer takes over the slots of those before it, and gets -1 where one after it has been, or -2 where
a master has lost what it had.

While a rebuilt copy is about to take the place of a sink's rows, that sink's writes are held back for a moment; and
where its pointer names something else, nobody would read them. The MULTI's first script says so where the others count,
and they write nothing (-4).
"""

from __future__ import annotations

#: Answers of scripts that wrote nothing: the stored checkpoint is another one; the pointer names something else; writes
#: are held back; a copy may not take the place yet, since the live rows went on, or are newer than the copy's; a master
#: of a cluster is not as it was left.
FENCED, POINTER, HELD, NOT_YET = -1, -3, -4, -5

#: By which of the answers a master is known not to have what was written last, and what of it.
LOST = {
    -2: "the writer's mark",
    -6: "the checkpoint before it",
    -7: "the writer's name",
    -8: "its history, for it is another one",
}

#: Field of a row's hash that holds its version.
VERSION_FIELD = "_walbus"

#: What every script that writes rows does behind its fence; `first_row` is the index of the first row's key.
_APPLY_ROWS = """
local since, ttl, life, text, own = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5] == 'text', ARGV[6]
local at = 7
for i = first_row, #KEYS, 2 do
  local row, beside = KEYS[i], KEYS[i + 1]
  local verb, seq, mark, n = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local first = at + 4
  at = first + n
  local beside_version = redis.call('GET', beside)
  local version, is_own = beside_version, true
  if not version and redis.call('TYPE', row).ok == 'hash' then
    version = redis.call('HGET', row, '_walbus')
  end
  local was, marked
  if version then
    local stored, mark_stored, by = string.match(version, '^(%-?%d+):(%d+):?([^\\n]*)')
    was, marked = tonumber(stored), tonumber(mark_stored)
    is_own = beside_version or by == own
    if was and not is_own then marked = since end
  end
  local new, applies = tonumber(seq), nil
  if verb == 'f' then
    applies = true
  elseif verb == 's' then
    applies = not was or marked < since or new >= was
  elseif verb == 'w' then
    applies = was and is_own and marked < tonumber(mark) and (marked < since or was <= new)
  else
    applies = new > floor and (not was or marked < since or new > was)
  end
  if applies then
    redis.call('DEL', row)
    if verb == 'd' or verb == 'w' then
      redis.call('SET', beside, seq .. ':' .. mark, 'PX', ttl)
    else
      local beside_it = seq .. ':' .. mark
      if text then
        redis.call('SET', row, ARGV[first])
        if n > 1 then beside_it = beside_it .. '\\n' .. ARGV[first + 1] end
      else
        local of_part = own == '' and beside_it or beside_it .. ':' .. own
        redis.call('HSET', row, '_walbus', of_part, unpack(ARGV, first, first + n - 1))
      end
      if life > 0 then
        redis.call('PEXPIRE', row, life)
        redis.call('SET', beside, beside_it, 'PX', life + tonumber(ttl))
      elseif text then
        redis.call('SET', beside, beside_it)
      elseif beside_version then
        redis.call('DEL', beside)
      end
    end
  end
end"""

#: KEYS: checkpoint, count of scripts done, floor, then for each change the row's key and the key beside it.
#: ARGV: the checkpoint expected, log_generation, tombstone milliseconds, milliseconds that rows live (0: for ever),
#: `hash` or `text`, the part `i-of-n` that writes (empty: all rows are its own), then for each change: verb, seq, mark,
#: number of parts, parts. Verbs: `u` upsert (log), `s` upsert (snapshot), `f` the same whatever the version, `d`
#: delete, `w` sweep. An upsert's parts are the fields and values of a hash, or a text and perhaps what is kept beside
#: it.
APPLY = (
    """
if redis.call('GET', KEYS[2]) == 'held' then return -4 end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local first_row, floor = 4, tonumber(redis.call('GET', KEYS[3]) or '0')
"""
    + _APPLY_ROWS
    + """
redis.call('INCR', KEYS[2])
return 0
"""
)

#: What is done with keys that changed.
_INVALIDATE_KEYS = """
local since, ttl, mark = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local at = 7
for i = first_key, #KEYS, 2 do
  local cached, beside, seq = KEYS[i], KEYS[i + 1], ARGV[at]
  at = at + 1
  local was, marked = string.match(redis.call('GET', beside) or '', '^(%-?%d+):(%d+)')
  if not was or tonumber(marked) < since or tonumber(seq) >= tonumber(was) then
    redis.call('SET', beside, seq .. ':' .. mark, 'PX', ttl)
    redis.call('UNLINK', cached)
  end
end"""

#: Keys that changed, of one table, for caches that hold values of their own.
#: KEYS: checkpoint, count of scripts done, then for each change the cached key and the key beside it (none of these
#: where nothing is deleted).
#: ARGV: the checkpoint expected, log_generation, tombstone milliseconds, mark, channel (empty: none), message, then for
#: each change its seq.
INVALIDATE = f"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local first_key = 3
{_INVALIDATE_KEYS}
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
redis.call('INCR', KEYS[2])
return 0
"""

#: All cached values of a table, or of all tables, are to be forgotten: what is on its way into the cache is not let in.
#: KEYS: checkpoint, epoch. ARGV: the checkpoint expected, the new epoch, channel (empty: none), message.
EMPTY = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[2], ARGV[2])
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 0
"""

#: Cached keys go. KEYS: checkpoint, count of scripts done, then the keys. ARGV: the checkpoint expected.
UNLINK = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('INCR', KEYS[2])
return 0
"""

#: For programs that fill a cache whose keys are deleted as they change; the documentation has the way to use it.
#: KEYS: the cached key, the key beside it, epoch. ARGV: what the two latter were before the value was read from the
#: source, each as a string, empty if there was none; the value; milliseconds that it may stay (0: for ever).
#: Gives 1 if the value was stored, 0 if it changed meanwhile.
FILL = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
if (redis.call('GET', KEYS[3]) or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
if ARGV[4] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
"""

#: A number that only rises: a floor (see above), or up to which seq rows are shown that the checkpoint tells not of.
#: KEYS: checkpoint, the number, what says that writes are held back. ARGV: the checkpoint expected, seq.
RAISE = """
if redis.call('EXISTS', KEYS[3]) == 1 then return -4 end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
if tonumber(redis.call('GET', KEYS[2]) or '0') < tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
return 0
"""

#: A command on each of some keys: of the sink's own notes, or of rows that are to go.
#: KEYS: checkpoint, what says that writes are held back, keys.
#: ARGV: the checkpoint expected, the command, what it has behind a key.
GUARDED = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
if redis.call('EXISTS', KEYS[2]) == 1 then return -4 end
for i = 3, #KEYS do redis.call(ARGV[2], KEYS[i], unpack(ARGV, 3)) end
return 0
"""

#: The first script of a MULTI, where rows have a pointer.
#: KEYS: checkpoint, count of scripts done, what says that writes are held back, pointer.
#: ARGV: the checkpoint expected, what the pointer is to name.
GATE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local answer = 0
if redis.call('EXISTS', KEYS[3]) == 1 then
  answer = -4
elseif redis.call('TYPE', KEYS[4]).ok ~= 'string' or redis.call('GET', KEYS[4]) ~= ARGV[2] then
  answer = -3
end
if answer ~= 0 then redis.call('SET', KEYS[2], 'held') end
return answer
"""

#: KEYS: checkpoint, count of scripts done, up to which seq more is shown.
#: ARGV: the checkpoint expected, the new one, how many scripts went before.
COMMIT = """
local done = redis.call('GET', KEYS[2])
if done == 'held' then return -4 end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
if done ~= ARGV[3] then return -2 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[3])
return 0
"""

_NAMES_OTHERS = """
local kind = redis.call('TYPE', pointer).ok
if kind ~= 'none' then
  local named = kind == 'string' and redis.call('GET', pointer)
  if not named or (named ~= '' and string.sub(named, 1, #rows) ~= rows) then return -3 end
end
"""

#: Has the pointer name the live rows, if it is not there or names others of the consumer's.
#: KEYS: checkpoint, pointer.
#: ARGV: the number before the checkpoint (empty: there is none), the live rows' prefix, what those of all generations
#: begin with. Which checkpoint it is does not matter: a consumer that runs stores hundreds of them a second.
POINT = f"""
local stored, number = redis.call('GET', KEYS[1]) or '', ''
if stored ~= '' then number = string.match(stored, '^(%d+) .') or '0' end
if number ~= ARGV[1] then return -1 end
local pointer, rows = KEYS[2], ARGV[3]
{_NAMES_OTHERS}
if kind == 'none' or redis.call('GET', pointer) ~= ARGV[2] then redis.call('SET', pointer, ARGV[2]) end
return 0
"""

#: What a copy's checkpoint is once the copy has taken the live rows' place. That it were gone would be what another
#: process expects which fills the copy and has committed nothing yet.
SWAPPED = "swapped"

#: A copy takes the live rows' place.
#: KEYS: checkpoint, pointer, the copy's checkpoint; the numbers of what was replaced and of the copy; of the live rows,
#: up to which seq more is shown, and what says that writes are held back; the former of the copy's rows.
#: ARGV: the checkpoint expected, the copy's as expected, the copy's rows' prefix, what those of all generations begin
#: with, the new checkpoint, the number of the live rows, the last seq that the copy has.
SWAP = f"""
if (redis.call('GET', KEYS[3]) or '') ~= ARGV[2] then return -1 end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -5 end
if tonumber(redis.call('GET', KEYS[6]) or '0') > tonumber(ARGV[7]) then return -5 end
local pointer, rows = KEYS[2], ARGV[4]
{_NAMES_OTHERS}
redis.call('SET', KEYS[1], ARGV[5])
redis.call('SET', pointer, ARGV[3])
redis.call('SET', KEYS[4], ARGV[6])
redis.call('SET', KEYS[3], '{SWAPPED}')
redis.call('DEL', KEYS[5], KEYS[6], KEYS[7], KEYS[8])
return 0
"""

#: Deletes keys of rows that are read no more; their memory is freed behind the answer.
#: KEYS: which generation is to go, then the keys. ARGV: its number.
DROP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 0
"""

#: Rows of another generation are copied, where nothing is known of them here: neither a row, nor that one was deleted.
#: KEYS: checkpoint, floor, then for each row its key and the one beside that, there and here.
#: ARGV: the checkpoint expected, the first mark whose seqs say something there, the mark that the rows get.
CARRY = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local since, mark, floor = tonumber(ARGV[2]), ARGV[3], tonumber(redis.call('GET', KEYS[2]) or '0')
for i = 3, #KEYS, 4 do
  local row, beside, here, beside_here = KEYS[i], KEYS[i + 1], KEYS[i + 2], KEYS[i + 3]
  local is_hash = redis.call('TYPE', row).ok == 'hash'
  local version = redis.call('GET', beside) or is_hash and redis.call('HGET', row, '_walbus')
  local seq, marked, kept = string.match(version or '', '^(%-?%d+):(%d+)(.*)$')
  if seq and tonumber(marked) < since then seq = '-1' end
  if seq and (floor == 0 or tonumber(seq) > floor) and redis.call('EXISTS', here, beside_here) == 0 then
    redis.call('COPY', row, here)
    if is_hash then redis.call('HSET', here, '_walbus', seq .. ':' .. mark) end
    if redis.call('COPY', beside, beside_here) == 1 then
      redis.call('SET', beside_here, seq .. ':' .. mark .. kept, 'KEEPTTL')
    end
  end
end
return 0
"""

#: APPLY for rows of one slot of a cluster. KEYS: the slot's fence, then as for APPLY. ARGV: the writer, then as for
#: APPLY. There is no floor: a late writer is kept out by the fence. Its first write is one that a server without memory
#: refuses, and with it all of the script.
APPLY_IN_SLOT = (
    """
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[1])
local first_row, floor = 2, 0
"""
    + _APPLY_ROWS
    + """
return 0
"""
)

#: INVALIDATE for keys of one slot of a cluster. KEYS: the slot's fence, then as for INVALIDATE. ARGV: the writer, then
#: as for INVALIDATE; nothing is published.
INVALIDATE_IN_SLOT = f"""
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[1])
local first_key = 2
{_INVALIDATE_KEYS}
return 0
"""

#: EMPTY for a slot of a cluster. KEYS: its fence and its epoch. ARGV: the writer, the new epoch.
EMPTY_IN_SLOT = """
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return 0
"""

#: UNLINK for keys of one slot of a cluster. KEYS: the slot's fence, then the keys. ARGV: the writer.
UNLINK_IN_SLOT = """
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 0
"""

#: GUARDED for keys of one slot of a cluster. KEYS: the slot's fence, keys. ARGV: the writer, then as for GUARDED.
GUARDED_IN_SLOT = """
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
for i = 2, #KEYS do redis.call(ARGV[2], KEYS[i], unpack(ARGV, 3)) end
return 0
"""

#: A slot is this writer's. KEYS: its fence, and perhaps an anchor that is to tell so. ARGV: the writer.
CLAIM = """
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
if KEYS[2] then
  if (redis.call('HGET', KEYS[2], 'writer') or '') > ARGV[1] then return -1 end
  redis.call('HSET', KEYS[2], 'writer', ARGV[1])
end
redis.call('SET', KEYS[1], ARGV[1])
return 0
"""

#: A master has taken all of a commit. KEYS: the fence of a slot, and the anchor there. ARGV: the writer, the number of
#: the checkpoint that is expected there (empty: none), the master's history, then fields and values of the new one.
#: Gives how many nodes this one knows.
COMMIT_IN_SLOT = """
local writer = redis.call('GET', KEYS[1]) or ''
if writer > ARGV[1] then return -1 end
if writer ~= ARGV[1] then return -2 end
if (redis.call('HGET', KEYS[2], 'number') or '') ~= ARGV[2] then return -6 end
if redis.call('HGET', KEYS[2], 'writer') ~= ARGV[1] then return -7 end
local now = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
if now ~= ARGV[3] then return -8 end
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
return tonumber(string.match(redis.call('CLUSTER', 'INFO'), 'cluster_known_nodes:(%d+)'))
"""

#: A checkpoint is of no use any more. KEYS: the fence of a slot, and the anchor there. ARGV: the writer, then fields.
DROP_IN_SLOT = """
if (redis.call('GET', KEYS[1]) or '') > ARGV[1] then return -1 end
redis.call('HDEL', KEYS[2], unpack(ARGV, 2))
return 0
"""
