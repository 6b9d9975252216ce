-- keep_step(record, number, head, body): what a step of a task came to is in its record: a head of two lines (its
-- name; when it was written in ms, how long it ran in ms, what it is, and a word more), then the body.
local function keep_step(record, number, head, body)
  local last = tonumber(redis.call('HGET', record, 'steps') or 0) or 0
  redis.call('HSET', record, 'step:' .. number, head .. '\n' .. body,
    'steps', string.format('%d', math.max(last, tonumber(number))))
end
