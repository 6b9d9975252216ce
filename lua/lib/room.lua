-- The server's time; what a level of priority is worth in line; how late a timer may be without losing tokens,
-- and how soon one may be.
local NOW = now_ms()
local NOW_TEXT = int(NOW)
local AGEING_US, SLACK_MS, TICK_MS = 6000000, 100, 5
-- How keys stand, by key: nothing else writes while this script runs. What goes wrong clears it.
local stands = {}
-- What other files call of the block below; the rest of it takes none of the 200 locals that Lua allows a script.
local terms, term_of, width, stand, standing, count, write_counts, most_of, list_of, obstacle
do
local read_terms = {}
-- group_terms(share, group): what a task of a group asks for: slots of the group's key and of the door.
local function group_terms(share, group)
  return { key = 'group:' .. group, weight = 1 }, { key = 'door', weight = 1, group = group, share = tonumber(share) }
end
-- terms(gate): what the text of a gated task says: its keys, what is strictly in order first, each with a
-- weight, its priority, unique key and deadline, whether it has parents, or has started before; and whether it is
-- plain: asks for keys alone, of which none is strictly in order. `reads`: it has parents and asks for nothing that
-- is given back.
function terms(gate)
  local found = read_terms[gate]
  if found then return found end
  local share, group = string.match(gate, '^g(%d*) ([^\n]*)$')
  if group then -- the usual of groups, of which each has a text of its own: without the loop, and in tables that do not grow
    found = { keys = { group_terms(share, group) }, priority = 0, parents = false, plain = true, reads = false }
    read_terms[gate] = found
    return found
  end
  found = { keys = {}, priority = 0 }
  read_terms[gate] = found
  local keys = found.keys
  for kind, number, rest in string.gmatch(gate, '(%a)(%d*) ?([^\n]*)') do
    if kind == 'a' then
      found.parents = true
    elseif kind == 'k' then
      keys[#keys + 1] = { key = rest, weight = tonumber(number) }
    elseif kind == 'o' then
      table.insert(keys, 1, { key = rest, weight = 1, order = true })
    elseif kind == 'g' then
      keys[#keys + 1], keys[#keys + 2] = group_terms(number, rest)
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
  local first = found.keys[1]
  found.plain = not (found.unique or found.expires or found.parents or first and first.order)
  found.reads = found.parents and not (found.unique or first)
  return found
end
-- term_of(gate, key): what a gated task asks for under one key; nil where it does not name it.
function term_of(gate, key)
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
local widths = {}
-- width(): how many tasks of groups may be in the stream: a rule for `door`, else twice what the workers
-- of this lane run at a time, counted anew each second.
function width()
  if widths[HERE] then return widths[HERE] end
  local counted, at = string.match(redis.call('HGET', LIMITS, 'd') or '', '^(%d+) (%d+)$')
  if at and NOW - tonumber(at) < 1000 and tonumber(at) <= NOW then
    widths[HERE] = tonumber(counted)
    return widths[HERE]
  end
  local slots, queue = 0, BASE .. HERE
  local alive = redis.call('ZRANGEBYSCORE', 'workers:' .. queue, int(NOW), '+inf', 'LIMIT', 0, 1000)
  for i = 1, #alive do
    slots = slots + (tonumber(look(0, 'HGET', 'worker:' .. queue .. ':' .. alive[i], 'slots') or 0) or 0)
  end
  slots = math.max(2 * slots, 2)
  widths[HERE] = slots
  redis.call('HSET', LIMITS, 'd', int(slots) .. ' ' .. int(NOW))
  return slots
end
-- By how much the counts of keys have changed, by field (the letter and the key), and what they were: they are
-- written once, at the end (see write_counts).
local changes, counted = {}, {}
-- The rule and the pause of each pattern that was read, or neither.
local patterns = { [''] = { false, false } }
-- pattern_of(key): the pattern for a key; '' where it has none.
local function pattern_of(key)
  local colon = string.find(key, ':', 1, true)
  return colon and string.sub(key, 1, colon) .. '*' or ''
end
-- note_key(key, s, w, has, at, over): how a key stands is known from now on: `has` from `at` on is its rule, slots in
-- use, tasks that wait, next token, since when it is paused; `over` is of its pattern.
local function note_key(key, s, w, has, at, over)
  local used, waiting = has[at + 1] and tonumber(has[at + 1]) or 0, has[at + 2] and tonumber(has[at + 2]) or 0
  counted[s], counted[w] = used, waiting
  local ruled = has[at] or over[1]
  local now = { s = s, w = w, used = used + (changes[s] or 0), waiting = waiting + (changes[w] or 0),
    tat = has[at + 3] and tonumber(has[at + 3]) or 0, ruled = ruled, rule = rule_of(ruled or ''), paused = has[at + 4] or over[2],
    heads = nil, line = nil }
  stands[key] = now
  return now
end
-- stand(keys, from, to): how keys stand is read in few commands, where it is not known yet; see standing.
function stand(keys, from, to)
  local fields, names, overs, n = {}, {}, {}, 0
  for i = from, to do
    local key = keys[i]
    if not stands[key] then
      local over = pattern_of(key)
      if not patterns[over] then patterns[over] = redis.call('HMGET', LIMITS, 'r' .. over, 'p' .. over) end
      fields[n + 1], fields[n + 2], fields[n + 3] = 'r' .. key, 's' .. key, 'w' .. key
      fields[n + 4], fields[n + 5] = 't' .. key, 'p' .. key
      names[n / 5 + 1], overs[n / 5 + 1], n = key, over, n + 5
    end
  end
  if n == 0 then return end
  local has = redis.call('HMGET', LIMITS, unpack(fields, 1, n))
  for i = 1, #names do
    local at = 5 * i - 4
    note_key(names[i], fields[at + 1], fields[at + 2], has, at, patterns[overs[i]])
  end
end
-- standing(term): how a key stands: its rule, whether it has one, slots in use (and the field of their count), tasks
-- that wait (the same), next token, whether paused.
function standing(term)
  local key = term.key
  local now = stands[key]
  if now then return now end
  local over, s, w = pattern_of(key), 's' .. key, 'w' .. key
  local has
  if patterns[over] then
    has = redis.call('HMGET', LIMITS, 'r' .. key, s, w, 't' .. key, 'p' .. key)
  else
    has = redis.call('HMGET', LIMITS, 'r' .. key, s, w, 't' .. key, 'p' .. key, 'r' .. over, 'p' .. over)
    patterns[over] = { has[6], has[7] }
  end
  return note_key(key, s, w, has, 1, patterns[over])
end
-- count(field, n): so many more, or fewer, are in use or wait under a key.
function count(field, n)
  changes[field] = (changes[field] or 0) + n
end
-- write_counts(): the counts that have changed are written: one step, however many keys and tasks it was. What fails
-- is done later, by timers with words of their own, for the tasks are where they are.
function write_counts()
  if not next(changes) then return end
  local changed, set, gone = changes, {}, {}
  changes = {}
  local function write(command, list, step)
    for from = 1, #list, 1000 do
      local to = math.min(from + 999, #list)
      if not pcall(redis.call, command, LIMITS, unpack(list, from, to)) then
        local time = redis.call('TIME')
        for k = from, to, step do
          local kind, key, n = string.sub(list[k], 1, 1) == 's' and 'free' or 'waits', string.sub(list[k], 2), changed[list[k]]
          local detail = int(kind == 'free' and -n or n) .. ' ' .. time[1] .. '.' .. time[2]
          timer(NOW + 5000, cjson.encode({ kind, key, detail }))
        end
      end
    end
  end
  for field, n in pairs(changed) do
    if n ~= 0 then
      counted[field] = math.max(counted[field] + n, 0)
      if counted[field] > 0 then
        set[#set + 1] = field
        set[#set + 1] = int(counted[field])
      else
        gone[#gone + 1] = field
      end
    end
  end
  write('HSET', set, 2)
  write('HDEL', gone, 1)
end
-- most_of(term, now): how many slots a key has, in which it stands so; nil for as many as are wanted.
function most_of(term, now)
  return term.order and 1 or now.rule.at_most or (term.group and width())
end
-- list_of(term): the key of the line under a key; for the door, of one group's.
function list_of(term)
  if term.group then return WAITING .. ':' .. term.key .. '\n' .. term.group end
  local now = standing(term)
  now.line = now.line or WAITING .. ':' .. term.key
  return now.line
end
-- obstacle(term, first): why there is no room for a task under a key, and when there will be, if that
-- is known; nil where there is. `first`: it is the first in line there.
function obstacle(term, first)
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
end
