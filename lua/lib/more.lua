-- What other files call of the block below; the rest of it takes none of the 200 locals that Lua allows a script.
local more
do
-- task_in_line(id, key): a task that waits under this key; nil where it does not. Of one that asks for no other, no
-- more is read than it takes to let it in.
local function task_in_line(id, key)
  local has, asked = row_in_line(id, key)
  if not has then return nil end
  local opts = has[7] or ''
  local task = { waits = true, in_line = true, opts = opts, gate = option(opts, 'gate'), terms = asked, name = has[3] or '',
    payload = has[4] or '', attempt = has[5] or '1', recovered = has[6] or '0', away = not has[5] and AWAY.lined or nil }
  local first = asked.keys[1]
  if first and first.order then
    has = redis.call('HMGET', TASK .. id, 'place', 'held')
    task.place, task.held = tonumber(has[1] or 0), has[2] or nil
    task.in_line = not task.held
    if task.held then task.away = nil end
  end
  return task
end
-- step_in(id, ref, task, term, line): the first in a line goes in, or on to another line; or it stays: then answers when
-- there will be room, true where that is not known.
local function step_in(id, ref, task, term, line)
  local under, _, at = enter(id, task, term.key)
  if under == term.key then return at or true end
  remove_from(line, ref)
  local now = standing(term)
  now.heads = nil
  recount(now, 0, -1)
  noted[#noted + 1] = { recount, now, 0, 1 }
end
-- next_of(now, key, line, ref): the first in a line under a key goes in, or on to another line; or stays. Answers whether
-- there may be room for another; raises what fails.
local function next_of(now, key, line, ref)
  local id = visit(ref)
  local task = task_in_line(id, key)
  local term = task and term_of(task.gate, key)
  if not term then -- it is in this line by no doing of ours
    remove_from(line, ref)
    now.heads = nil
    recount(now, 0, -1)
    return true
  end
  local fault, stays = whole(step_in, id, ref, task, term, line)
  if fault then
    stands = {}
    error(fault, 0)
  end
  if not stays then return true, term end
  if stays ~= true then timer(math.max(stays, NOW + TICK_MS), cjson.encode({ 'more', key, '' })) end
  return false
end
-- more(key): lets in the first in line under a key, as long as there is room.
function more(key)
  local line = WAITING .. ':' .. key
  while true do
    local now, n, goes_on = standing({ key = key }), 0, true
    local most = now.rule.at_most or key == 'door' and width()
    if now.waiting <= 0 or now.paused or most and now.used > 0 and now.used >= most then return end
    if steps <= 0 then return later('more', key) end
    write_sets()
    if key == 'door' then
      goes_on = take_turns(now, math.max(math.min(most - now.used, 50, steps), 1), next_of, function(of)
        return removed[of] and #removed[of] or 0
      end)
    else
      if not now.rule.rate and now.tat <= NOW then n = go_in_together(key, now, most) end
      if n == 0 then
        local ref = redis.call('ZRANGE', line, 0, 0)[1]
        steps = steps - 1
        if not ref then return recount(now, 0, -now.waiting) end
        goes_on = next_of(now, key, line, ref)
      end
    end
    if not goes_on then return end
  end
end
end
