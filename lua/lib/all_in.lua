-- all_in(): lets in all that follows, where that is no more than the first of lines under keys that have slots but no
-- rate, and of groups by turns; false where there is more to do. Raises what fails.
local function all_in()
  for i = 1, #todo do
    local kind, key = todo[i][1], todo[i][2]
    if kind ~= 'more' then return false end
    local now = standing({ key = key })
    local most = now.rule.at_most or key == 'door' and width()
    if now.rule.rate or now.tat > NOW or now.paused then return false end
    while now.waiting > 0 and not (most and now.used > 0 and now.used >= most) do
      if steps <= 0 then return false end
      if key ~= 'door' then
        if go_in_together(key, now, most) == 0 then return false end
      elseif not take_turns(now, math.max(math.min(most - now.used, 50, steps), 1)) then
        return false
      end
    end
  end
  todo = {}
  return true
end
