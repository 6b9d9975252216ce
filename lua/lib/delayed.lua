-- delayed_tasks(waiting): how many tasks are delayed, when the next of them is due, and when the next
-- timer is (nil: none), as numbers. Timers stand in the same set and begin with a line feed; there are
-- some where tasks wait, and they are the earliest. So a hundred members are read then, and one
-- otherwise; timers behind those are counted as tasks.
local function delayed_tasks(waiting)
  local count = look(0, 'ZCARD', DELAYED)
  local page = look({}, 'ZRANGE', DELAYED, 0, waiting > 0 and 99 or 0, 'WITHSCORES')
  if waiting == 0 and page[1] and string.sub(page[1], 1, 1) == '\n' then
    page = look({}, 'ZRANGE', DELAYED, 0, 99, 'WITHSCORES')
  end
  local due, timer
  for i = 1, #page, 2 do
    if string.sub(page[i], 1, 1) == '\n' then
      count = count - 1
      timer = timer or tonumber(page[i + 1])
    elseif not due then
      due = tonumber(page[i + 1])
    end
  end
  if not due and count > 0 then due = tonumber(page[#page]) end
  return count, due, timer
end
