-- deploy: whether the schedules that a program declares are newer than those that are there.
-- KEYS:
--   1 meta
-- ARGV:
--   1 program: whose schedules they are
--   2 deploy: names what is declared
--   3 step: ask, or done: they are there now
-- RETURN: a word: new (it was never there), newest (it is there), old (another has taken its place)
-- COST: HGET, and HSET for what is done
-- WHY: a deploy is done once, by the first worker that starts with it, so that what operators change or delete
--   afterwards stays so. A worker of an earlier deploy that starts again finds that another has taken its
--   place. It is noted when all its schedules are there: one that dies before leaves the rest to the next.
local field = 'deploys:' .. ARGV[1]
local known, place, count = redis.call('HGET', KEYS[1], field) or '', 0, 0
local names = {}
for name in string.gmatch(known, '[^\n]+') do
  count = count + 1
  names[count] = name
  if name == ARGV[2] then place = count end
end
if place > 0 then return place == count and 'newest' or 'old' end
if ARGV[3] == 'ask' then return 'new' end
names[count + 1] = ARGV[2]
redis.call('HSET', KEYS[1], field, table.concat(names, '\n', math.max(1, count - 48)))
return 'newest'
