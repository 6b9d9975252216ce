-- parent_again(id, readers): a task runs again that some have still to read, or to be released by: its new end
-- follows them up.
local function parent_again(id, readers)
  if readers or redis.call('EXISTS', DEPENDANTS .. 't:' .. ref_of(id)) == 1 then mark_parent(id) end
end
-- unread_of(id, after, read): a task runs again, and has not said yet of all its parents that it reads their old
-- results no more: what is left of its old edges is followed up beside the new ones (see done_reading).
local function unread_of(id, after, read)
  redis.call('HSET', TASK .. id, 'read', after and read and read .. '\n' .. after or after or read)
  later('read', ref_of(id))
end
