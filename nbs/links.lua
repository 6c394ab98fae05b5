-- nbdev makes links of names in backticks also where none can be: within code, and to private names, which no page shows.
-- The code it writes itself is a signature: styles.css wraps it.
function CodeBlock(o)
  o.text = o.text:gsub('%[(`[^`]+`)%]%(https?://[^)]+%)', '%1')
  if o.text:match('^def ') and not o.classes:includes('cell-code') then o.classes:insert('signature') end
  return o
end

function Link(o)
  if o.target:match('%.html#_') then return o.content end
end
