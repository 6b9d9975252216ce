-- take_turn(turn, now, otherwise, leaving): the first of a group at the door goes in; where that is not so simple,
-- `otherwise` sees to it, if there is such a function; `leaving` tells how many of a line are to leave it by its doing.
-- Answers whether another may go in; raises what fails.
local function take_turn(turn, now, otherwise, leaving)
  local at = #turn.left + (leaving and leaving(turn.line) or 0)
  local refs = redis.call('ZRANGE', turn.line, at, at + 1)
  local ref, goes_on, term = refs[1], true, nil
  if ref then
    term = go_simply(ref, 'door', nil, turn.key)
    if term then
      turn.left[#turn.left + 1] = ref
      recount(now, 1, -1)
    elseif otherwise then
      goes_on, term = otherwise(now, 'door', turn.line, ref)
    else
      return false
    end
  end
  if not goes_on then return false end
  if term then
    turn.last = turn.time
    turn.time = turn.time + 1 / ((stands[turn.key] or standing({ key = turn.key })).rule.weight or term.share)
  end
  if not refs[2] then turn.gone, turn.line = turn.line, false end
  return true
end
-- take_turns(now, room, otherwise, leaving): groups at the door let in their first, by turns, as long as there is room,
-- and steps (see take_turn). Answers whether there may be more of them; raises what fails.
local function take_turns(now, room, otherwise, leaving)
  may_wait()
  local page = redis.call('ZRANGE', SHARES, 0, int(room) - 1, 'WITHSCORES')
  if not page[1] then return false end
  local turns, keys, moved, gone, left, last = {}, {}, {}, {}, {}, nil
  for i = 1, #page, 2 do
    local group, n = page[i], #keys + 1
    keys[n] = 'group:' .. group
    turns[n] = { group = group, key = keys[n], time = tonumber(page[i + 1]), line = WAITING .. ':door\n' .. group, left = {},
      last = false, gone = false }
  end
  stand(keys, 1, #keys)
  local ok, goes_on, at, least = true, true, 1, math.huge -- who has had no turn yet; the least time of those who had
  for _ = 1, room do
    local turn = turns[at]
    for i = 1, (not turn or turn.time >= least) and at - 1 or 0 do
      local other = turns[i]
      if other.line and (not turn or other.time < turn.time or other.time == turn.time and other.group < turn.group) then
        turn = other
      end
    end
    if not turn then break end
    steps = steps - 1
    ok, goes_on = pcall(take_turn, turn, now, otherwise, leaving)
    last = turn.last and math.max(turn.last, last or 0) or last
    if not ok or not goes_on then break end
    if turn == turns[at] then at = at + 1 end
    if turn.line then least = math.min(least, turn.time) end
  end
  now.heads = nil
  for i = 1, #turns do
    local turn = turns[i]
    if turn.left[1] then redis.call('ZREM', turn.gone or turn.line, unpack(turn.left, 1, #turn.left)) end
    for k = 1, #turn.left do left[#left + 1] = turn.left[k] end
    if turn.gone then
      gone[#gone + 1] = turn.group
    elseif turn.last then
      moved[#moved + 1] = string.format('%.6f', turn.time)
      moved[#moved + 1] = turn.group
    end
  end
  if left[1] then redis.call('ZREM', WAITING, unpack(left, 1, #left)) end
  if last then redis.call('HSET', LIMITS, 'v', string.format('%.17g', last)) end
  if moved[1] then redis.call('ZADD', SHARES, 'XX', unpack(moved, 1, #moved)) end
  if gone[1] then redis.call('ZREM', SHARES, unpack(gone, 1, #gone)) end
  if not ok then error(goes_on, 0) end
  return goes_on
end
