-- may_drop(): proves that entries can be dropped, before anything is written: where it cannot be, the
-- script ends here and nothing has changed. No entry has the id 0-0. These are the first writes
-- of a script and take no memory: after them a server beyond maxmemory allows all others, so a
-- full server still drains.
local function may_drop()
  redis.call('XACK', STREAM, GROUP, '0-0')
  redis.call('XDEL', STREAM, '0-0')
end
-- drop(entry): acknowledge and delete, once what was to be kept of it is written (see may_drop).
local function drop(entry)
  redis.call('XACK', STREAM, GROUP, entry)
  redis.call('XDEL', STREAM, entry)
end
