-- What the clock showed when this script first asked: all that it does is done at one instant.
local clock
-- now_ms(): the server's clock in whole milliseconds; clients' clocks are never compared.
local function now_ms()
  if not clock then
    local time = redis.call('TIME')
    clock = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return clock
end
-- int(x): an integer as text; tostring() would turn a millisecond stamp into 1.76e+12.
local function int(x)
  return string.format('%d', x)
end
