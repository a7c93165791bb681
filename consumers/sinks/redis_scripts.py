"""The Lua that Redis runs for the sink: each call compares versions and writes, with nothing in between.

Versions are compared as numbers, which is exact below 2^53, and stored as the very strings that came as arguments:
Lua never prints one. A row's version is `seq:mark`: a field of its hash, or a key beside its text. A deleted row
leaves its version in the key beside (a tombstone, with a time to live), and a truncated table leaves a floor below
which no change of the log applies.

Every call begins with the fence: the checkpoint that is stored must be the one that this sink stored last (or none,
if it never did). If a server came back empty, or another process wrote, nothing is written, and the answer is -1.
"""

from __future__ import annotations

#: Field of a row's hash that holds its version.
VERSION_FIELD = "_walbus"

#: KEYS: checkpoint, floor, then for each change the row's key and the key beside it.
#: ARGV: the checkpoint expected, log_generation, tombstone milliseconds, then for each change: verb, seq, mark, number
#: of parts, parts. Verbs: `u` upsert (log), `s` upsert (snapshot), `f` the same whatever the version, `d` delete,
#: `w` sweep. An upsert's parts are the fields and values of a hash, or one text.
APPLY = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local since, ttl = tonumber(ARGV[2]), ARGV[3]
local floor = tonumber(redis.call('GET', KEYS[2]) or '0')
local at = 4
for i = 3, #KEYS, 2 do
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
    local colon = string.find(version, ':', 1, true)
    was, marked = tonumber(string.sub(version, 1, colon - 1)), tonumber(string.sub(version, colon + 1))
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
    elseif n == 1 then
      redis.call('SET', row, ARGV[first])
      redis.call('SET', beside, seq .. ':' .. mark)
    else
      redis.call('HSET', row, '_walbus', seq .. ':' .. mark, unpack(ARGV, first, first + n - 1))
      if beside_version then redis.call('DEL', beside) end
    end
  end
end
return 0
"""

#: KEYS: checkpoint, floor. ARGV: the checkpoint expected, seq.
RAISE_FLOOR = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
if tonumber(redis.call('GET', KEYS[2]) or '0') < tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
return 0
"""

#: KEYS: checkpoint. ARGV: the checkpoint expected, the new one.
COMMIT = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[2])
return 0
"""
