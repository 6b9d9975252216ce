-- oldest_unread(): the first entry of the stream that the group has not been given yet, or nil.
local function oldest_unread()
  local groups, last = look({}, 'XINFO', 'GROUPS', STREAM), '0-0'
  for i = 1, #groups do
    local row = {}
    for j = 1, #groups[i], 2 do row[groups[i][j]] = groups[i][j + 1] end
    if row.name == GROUP then last = row['last-delivered-id'] end
  end
  local unread = look({}, 'XRANGE', STREAM, '(' .. last, '+', 'COUNT', 1)
  return unread[1] and unread[1][1]
end
