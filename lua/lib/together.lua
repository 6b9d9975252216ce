-- recount(now, used, waiting): so many more slots are in use, and so many more tasks wait, under a key that stands so.
local function recount(now, used, waiting)
  if used ~= 0 then count(now.s, used) end
  if waiting ~= 0 then count(now.w, waiting) end
  now.used, now.waiting = now.used + used, now.waiting + waiting
end
-- What a record says of waiting, at most; and of a new task in a line, or of one that waits for parents alone.
local AWAY = {
  all = { 'state', 'reason', 'place', 'name', 'payload', 'opts', 'under', 'attempt', 'recovered', 'parents', 'due', 'held' },
  lined = { 'state', 'reason', 'place', 'name', 'payload', 'opts', 'under' },
  parents = { 'state', 'reason', 'place', 'name', 'payload', 'opts', 'parents' },
}
-- let_go(id, name, payload, attempt, recovered, opts, away): a task that waited and has nothing to take is in the stream
-- from now on, whole or not at all; raises what fails. `away`: what its record said of its waiting.
local function let_go(id, name, payload, attempt, recovered, opts, away)
  local record, entry = TASK .. id, add(id, name, payload, attempt, recovered, opts)
  local written = redis.pcall('HSET', record, 'entry', entry)
  if type(written) ~= 'table' then
    written = redis.pcall('HDEL', record, unpack(away, 1, #away))
    if type(written) ~= 'table' then return end
    redis.pcall('HSET', record, 'entry', '')
  end
  redis.pcall('XDEL', STREAM, entry)
  return error(written.err, 0)
end
-- let_in(id, task): a task whose keys are taken is in the stream from now on. Noted for undoing, but for
-- what its record said of its waiting, which goes last.
local function let_in(id, task)
  local entry = add(id, task.name, task.payload, task.attempt, task.recovered, task.opts)
  noted[#noted + 1] = { 'XDEL', STREAM, entry }
  local record, away = TASK .. id, task.away or AWAY.all
  redis.call('HSET', record, 'entry', entry)
  noted[#noted + 1] = { 'HSET', record, 'entry', '' }
  redis.call('HDEL', record, unpack(away, 1, #away))
end
local proved
-- may_wait(): proves that tasks can wait and be let in, before anything is written: where they cannot, the script
-- fails here and nothing has changed. Asked once a call.
local function may_wait()
  if proved then return end
  redis.call('HDEL', LIMITS, '')
  redis.call('ZREM', WAITING, '')
  proved = true
end
-- How many steps follow from one call, at most: what is left over is for the next, by a timer.
local steps = 200
-- row_in_line(id, key): what the record of a task says that waits under this key (its name from the third on, payload,
-- attempt, recovered, opts), and what it asks for; nil where it does not wait there.
local function row_in_line(id, key)
  local has = redis.call('HMGET', TASK .. id, 'state', 'under', 'name', 'payload', 'attempt', 'recovered', 'opts')
  if has[1] ~= 'waiting' or has[2] ~= key then return nil end
  return has, terms(option(has[7], 'gate'))
end
-- go_simply(ref, key, room, own): the first in line under a key goes in where it asks for no other, or at the door for
-- its group's alone, and there is room: nothing is left but its member of the line, of those that wait, and the key's
-- counts. Answers what it asked for; nil where it is not so simple, and nothing was written; raises what fails. `room`:
-- slots that are left, nil for as many as are wanted. `own`: the key of the group whose turn it is.
local function go_simply(ref, key, room, own)
  local id = visit(ref)
  local has, asked = row_in_line(id, key)
  if not has or not asked.plain then return nil end
  local first, term, more, now = asked.keys[1], asked.keys[1], asked.keys[2], nil
  if own then
    term, more = more, asked.keys[3]
    if not term or first.key ~= own then return nil end
    now = standing(first)
    if now.rule.rate or obstacle(first, false) then return nil end
  end
  if more or not term or term.key ~= key or room and term.weight > room then return nil end
  let_go(id, has[3] or '', has[4] or '', has[5] or '1', has[6] or '0', has[7], has[5] and AWAY.all or AWAY.lined)
  if now then recount(now, 1, 0) end
  return term
end
-- go_in_together(key, now, most): lets in the first in line under a key that has slots but no rate, as long as they
-- are plain and ask for no other: one step for what is beside their records. Answers how many.
local function go_in_together(key, now, most)
  local line, used, n, ok, term = WAITING .. ':' .. key, now.used, 0, true, nil
  may_wait()
  local refs = redis.call('ZRANGE', line, 0, int(math.min(most and math.max(most - used, 1) or 50, 50, steps)) - 1)
  for i = 1, #refs do
    ok, term = pcall(go_simply, refs[i], key, most and used > 0 and most - used, nil)
    if not ok or not term then break end
    n, used = i, used + term.weight
  end
  if n > 0 then
    steps = steps - n
    redis.call('ZREM', line, unpack(refs, 1, n))
    redis.call('ZREM', WAITING, unpack(refs, 1, n))
    now.heads = nil
    recount(now, used - now.used, -n)
  end
  if not ok then error(term, 0) end
  return n
end
