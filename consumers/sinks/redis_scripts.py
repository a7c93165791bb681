"""The Lua that Redis runs for the sink: each call compares versions and writes, with nothing in between.

Versions are compared as numbers, which is exact below 2^53, and stored as the very strings that came as arguments:
Lua never prints one. A row's version is `seq:mark`: a field of its hash, or a key beside its text. A deleted row
leaves its version in the key beside (a tombstone, with a time to live), and a truncated table leaves a floor below
which no change of the log applies. A row that expires has its version in the key beside too, which outlives it as a
tombstone does. Behind a text's version, on a line of its own, may stand the columns that it was made of.

Every call begins with the fence: the checkpoint that is stored must be the one that this sink stored last (or none,
if it never did). If a server came back empty, or another process wrote, nothing is written, and the answer is -1.

Redis goes on with a MULTI behind a script that failed. So each script that writes rows counts itself as done, and the
checkpoint is stored only behind all of them.
"""

from __future__ import annotations

#: Field of a row's hash that holds its version.
VERSION_FIELD = "_walbus"

#: KEYS: checkpoint, count of scripts done, floor, then for each change the row's key and the key beside it.
#: ARGV: the checkpoint expected, log_generation, tombstone milliseconds, milliseconds that rows live (0: for ever),
#: `hash` or `text`, then for each change: verb, seq, mark, number of parts, parts. Verbs: `u` upsert (log), `s` upsert
#: (snapshot), `f` the same whatever the version, `d` delete, `w` sweep. An upsert's parts are the fields and values of
#: a hash, or a text and perhaps what is kept beside it.
APPLY = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local since, ttl, life, text = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5] == 'text'
local floor = tonumber(redis.call('GET', KEYS[3]) or '0')
local at = 6
for i = 4, #KEYS, 2 do
  local row, beside = KEYS[i], KEYS[i + 1]
  local verb, seq, mark, n = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local first = at + 4
  at = first + n
  local beside_version = redis.call('GET', beside)
  local version = beside_version
  if not version and redis.call('TYPE', row).ok == 'hash' then
    version = redis.call('HGET', row, '_walbus')
  end
  local was, marked
  if version then
    local stored, mark_stored = string.match(version, '^(%-?%d+):(%d+)')
    was, marked = tonumber(stored), tonumber(mark_stored)
  end
  local new, applies = tonumber(seq), nil
  if verb == 'f' then
    applies = true
  elseif verb == 's' then
    applies = not was or marked < since or new >= was
  elseif verb == 'w' then
    applies = was and marked < tonumber(mark) and (marked < since or was <= new)
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
        redis.call('HSET', row, '_walbus', beside_it, unpack(ARGV, first, first + n - 1))
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
end
redis.call('INCR', KEYS[2])
return 0
"""

#: Keys that changed, of one table, for caches that hold values of their own.
#: KEYS: checkpoint, count of scripts done, then for each change the cached key and the key beside it (none of these
#: where nothing is deleted).
#: ARGV: the checkpoint expected, log_generation, tombstone milliseconds, mark, channel (empty: none), message, then for
#: each change its seq.
INVALIDATE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local since, ttl, mark = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local at = 7
for i = 3, #KEYS, 2 do
  local cached, beside, seq = KEYS[i], KEYS[i + 1], ARGV[at]
  at = at + 1
  local was, marked = string.match(redis.call('GET', beside) or '', '^(%-?%d+):(%d+)')
  if not was or tonumber(marked) < since or tonumber(seq) >= tonumber(was) then
    redis.call('SET', beside, seq .. ':' .. mark, 'PX', ttl)
    redis.call('UNLINK', cached)
  end
end
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

#: KEYS: checkpoint, floor. ARGV: the checkpoint expected, seq.
RAISE_FLOOR = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
if tonumber(redis.call('GET', KEYS[2]) or '0') < tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
return 0
"""

#: KEYS: checkpoint, count of scripts done. ARGV: the checkpoint expected, the new one, how many scripts went before.
COMMIT = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return -2 end
redis.call('SET', KEYS[1], ARGV[2])
return 0
"""
