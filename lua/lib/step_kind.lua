-- step_kind(value): what a step in a record is: r (a result), s (a sleep), w (a wait), e (an event), t (a wait that is
-- over without one); and the word with it: until when in ms, or which event. Nothing for what is none.
local function step_kind(value)
  if type(value) ~= 'string' then return nil end
  return string.match(value, '^[^\n]*\n%d+ %S+ (%a) (%S*)\n')
end
