-- The server's time; what a level of priority is worth in line; how late a timer may be without losing tokens,
-- and how soon one may be.
local NOW = now_ms()
local AGEING_US, SLACK_MS, TICK_MS = 6000000, 100, 5
local read_terms = {}
-- terms(gate): what the text of a gated task says: its keys, what is strictly in order first, each with a
-- weight, its priority, unique key and deadline, and whether it has parents, or has started before.
local function terms(gate)
  if read_terms[gate] then return read_terms[gate] end
  local found = { keys = {}, priority = 0 }
  read_terms[gate] = found
  for kind, rest in string.gmatch(gate, '(%a)([^\n]*)') do
    if kind == 'a' then
      found.parents = true
    elseif kind == 'k' then
      local weight, key = string.match(rest, '^(%d+) (.*)$')
      found.keys[#found.keys + 1] = { key = key, weight = tonumber(weight) }
    elseif kind == 'o' then
      table.insert(found.keys, 1, { key = string.sub(rest, 2), weight = 1, order = true })
    elseif kind == 'g' then
      local share, group = string.match(rest, '^(%d+) (.*)$')
      found.keys[#found.keys + 1] = { key = 'group:' .. group, weight = 1 }
      found.keys[#found.keys + 1] = { key = 'door', weight = 1, group = group, share = tonumber(share) }
    elseif kind == 'p' then
      found.priority = tonumber(rest)
    elseif kind == 'u' then
      found.scope, found.unique = string.match(rest, '^(%S+) (.*)$')
    elseif kind == 'x' then
      found.expires = tonumber(rest)
    elseif kind == 's' then
      found.started = true
    end
  end
  return found
end
-- term_of(gate, key): what a gated task asks for under one key; nil where it does not name it.
local function term_of(gate, key)
  local keys = terms(gate).keys
  for i = 1, #keys do
    if keys[i].key == key then return keys[i] end
  end
end
local parsed = { [''] = {} }
-- rule_of(text): a rule as a table: at_most, rate, per, burst, excess, weight, on_failure.
local function rule_of(text)
  if not parsed[text] then
    local rule = {}
    for name, value in string.gmatch(text, '([%a_]+)=(%S+)') do rule[name] = tonumber(value) or value end
    parsed[text] = rule
  end
  return parsed[text]
end
-- width(): how many tasks of groups may be in the stream: a rule for `door`, else twice what the workers
-- of this lane run at a time, counted anew each second.
local function width()
  local counted, at = string.match(redis.call('HGET', LIMITS, 'd') or '', '^(%d+) (%d+)$')
  if at and NOW - tonumber(at) < 1000 and tonumber(at) <= NOW then return tonumber(counted) end
  local slots, queue = 0, BASE .. HERE
  local alive = redis.call('ZRANGEBYSCORE', 'workers:' .. queue, int(NOW), '+inf', 'LIMIT', 0, 1000)
  for i = 1, #alive do
    slots = slots + (tonumber(look(0, 'HGET', 'worker:' .. queue .. ':' .. alive[i], 'slots') or 0) or 0)
  end
  slots = math.max(2 * slots, 2)
  redis.call('HSET', LIMITS, 'd', int(slots) .. ' ' .. int(NOW))
  return slots
end
-- How keys stand, by key: nothing else writes while this script runs. What goes wrong clears it.
local stands = {}
-- standing(term): how a key stands: its rule, whether it has one, slots in use, tasks that wait, next
-- token, whether paused.
local function standing(term)
  local key = term.key
  if stands[key] then return stands[key] end
  local prefix = string.match(key, '^[^:]*:')
  local pattern = prefix and prefix .. '*' or key
  local has = redis.call('HMGET', LIMITS, 'r' .. key, 'r' .. pattern, 's' .. key, 'w' .. key, 't' .. key,
    'p' .. key, 'p' .. pattern)
  local rule = rule_of(has[1] or has[2] or '')
  local now = { rule = rule, used = tonumber(has[3] or 0), waiting = tonumber(has[4] or 0),
    tat = tonumber(has[5] or 0), paused = has[6] or has[7], ruled = has[1] or has[2] }
  stands[key] = now
  return now
end
-- most_of(term, now): how many slots a key has, in which it stands so; nil for as many as are wanted.
local function most_of(term, now)
  return term.order and 1 or now.rule.at_most or (term.group and width())
end
-- list_of(term): the key of the line under a key; for the door, of one group's.
local function list_of(term)
  return WAITING .. ':' .. term.key .. (term.group and '\n' .. term.group or '')
end
-- in_front(term, task, priority): whether a task would be the first in the line under a key: one that comes from
-- another line, or is more urgent, may have a place before all that wait there.
local function in_front(term, task, priority)
  if standing(term).waiting <= 0 or (term.order and not task.place) then return false end
  local now, line = standing(term), list_of(term)
  now.heads = now.heads or {}
  now.heads[line] = now.heads[line] or redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2]
  local first = now.heads[line]
  local place = task.place or NOW * 1000
  return not first or (term.order and place or place - priority * AGEING_US) < tonumber(first)
end
-- obstacle(term, first): why there is no room for a task under a key, and when there will be, if that
-- is known; nil where there is. `first`: it is the first in line there.
local function obstacle(term, first)
  local now = standing(term)
  if now.paused then return 'paused' end
  local most = most_of(term, now)
  local reason = term.order and 'order' or term.group and 'share' or most and 'limit' or 'rate'
  if not first and now.waiting > 0 then return reason end
  -- One that is heavier than all there is runs alone.
  if most and now.used > 0 and now.used + term.weight > most then return reason end
  local each = now.rule.rate and now.rule.per / now.rule.rate or 0
  local free_at = now.tat - ((now.rule.burst or 1) - 1) * each
  if free_at > NOW then return 'rate', free_at end
end
