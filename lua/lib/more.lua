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
-- first_turn(turns): whose turn it is of these groups: the one with the least virtual time.
local function first_turn(turns)
  local first
  for i = 1, #turns do
    local turn = turns[i]
    if turn.line and (not first or turn.time < first.time or turn.time == first.time and turn.group < first.group) then
      first = turn
    end
  end
  return first
end
-- take_turns(now, room): groups at the door let in their first, by turns, as long as there is room, and steps. Answers
-- whether there may be more of them; raises what fails.
local function take_turns(now, room)
  local page = redis.call('ZRANGE', SHARES, 0, int(room) - 1, 'WITHSCORES')
  if not page[1] then return false end
  local turns, keys, moved, gone, last = {}, {}, {}, {}, nil
  for i = 1, #page, 2 do
    turns[#turns + 1] = { group = page[i], time = tonumber(page[i + 1]), line = WAITING .. ':door\n' .. page[i], at = 0 }
    keys[#keys + 1] = 'group:' .. page[i]
  end
  stand(keys, 1, #keys)
  local ok, goes_on, term = true, true, nil
  for _ = 1, room do
    local turn = first_turn(turns)
    if not turn then break end
    steps = steps - 1
    local refs = redis.call('ZRANGE', turn.line, turn.at, turn.at + 1)
    turn.at = turn.at + 1
    if refs[1] then ok, goes_on, term = pcall(next_of, now, 'door', turn.line, refs[1]) end
    if not ok or not goes_on then break end
    if not refs[2] then
      gone[#gone + 1], turn.line = turn.group, false
    end
    if refs[1] and term then
      last = turn.time
      turn.time = turn.time + 1 / (standing({ key = 'group:' .. turn.group }).rule.weight or term.share)
      turn.moved = true
    end
  end
  for i = 1, #turns do
    if turns[i].moved and turns[i].line then
      moved[#moved + 1] = string.format('%.6f', turns[i].time)
      moved[#moved + 1] = turns[i].group
    end
  end
  if last then redis.call('HSET', LIMITS, 'v', string.format('%.17g', last)) end
  if moved[1] then redis.call('ZADD', SHARES, 'XX', unpack(moved, 1, #moved)) end
  if gone[1] then redis.call('ZREM', SHARES, unpack(gone, 1, #gone)) end
  if not ok then error(goes_on, 0) end
  return goes_on
end
-- more(key): lets in the first in line under a key, as long as there is room.
local function more(key)
  local line = WAITING .. ':' .. key
  while true do
    local now, n, goes_on = standing({ key = key }), 0, true
    local most = now.rule.at_most or key == 'door' and width()
    if now.waiting <= 0 or now.paused or most and now.used > 0 and now.used >= most then return end
    if steps <= 0 then return later('more', key) end
    write_sets()
    if key == 'door' then
      goes_on = take_turns(now, math.max(math.min(most - now.used, 50, steps), 1))
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
